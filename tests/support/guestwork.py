"""What a test does in a guest that has nothing but the agent: it brings a program along, ``guestio.c``."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from cloche.guest.messages import SetupDone
from cloche.model.guest import GuestCommand, WriteFile
from support.vmm import PATIENCE_S

if TYPE_CHECKING:
    from cloche.guest.job import Job
    from cloche.guest.messages import SetupFailed
    from cloche.model.guest import Step
    from support.agents import Guest

_SOURCE = Path(__file__).with_name("guestio.c")
_PROGRAM = b"/run/guestio"


def compile_program(path: Path) -> Path:
    """Compile ``guestio.c`` as a program that runs anywhere."""
    flags = ("-O1", "-Wall", "-Wextra", "-Werror", "-static")
    subprocess.run(["gcc", *flags, "-o", str(path), str(_SOURCE)], check=True)
    return path


def bring(program: Path) -> Step:
    """Return the step that puts the compiled program into a guest."""
    return WriteFile(_PROGRAM, 0o755, 0, 0, program.read_bytes())


def setup(guest: Guest, *steps: Step) -> None:
    """Have the agent do these steps."""
    answers: list[SetupDone | SetupFailed] = []
    guest.session.setup(steps, answers.append)
    assert guest.reactor.run_until(lambda: bool(answers or guest.lost), PATIENCE_S), (
        "the agent does not answer"
    )
    assert answers, guest.lost
    assert isinstance(answers[0], SetupDone), answers[0]


def run(guest: Guest, *words: str, data: bytes | None = None) -> bytes:
    """Run the guest's program to its end; return what it says."""
    status, out, err = guest.run(_command(*words), data)
    assert status == 0, err
    return out


def _command(*words: str) -> GuestCommand:
    argv = (_PROGRAM, *(os.fsencode(word) for word in words))
    return GuestCommand(argv, (), b"/", 0, 0)


class Work:
    """A program of the guest that goes on and on, and knows at its end whether all was right.

    Args:
        guest: Where it runs.
        words: Its arguments.
    """

    def __init__(self, guest: Guest, *words: str) -> None:
        self._guest = guest
        self._out, self._err = bytearray(), bytearray()
        theirs, self._stdin = os.pipe()
        self._job: Job = guest.start(
            _command(*words), stdin=theirs, stdout=self._out.extend, stderr=self._err.extend
        )
        os.close(theirs)
        self.go_on()

    def go_on(self) -> None:
        """Wait until it has gone round some more."""
        wanted = self._out.count(b"\n") + 3
        done = self._guest.reactor.run_until(
            lambda: self._out.count(b"\n") >= wanted or self._job.done or bool(self._guest.lost), PATIENCE_S
        )
        assert done, "the guest stands still"
        assert not self._guest.lost, self._guest.lost
        assert not self._job.done, bytes(self._err)

    def finish(self) -> str:
        """End it; return what was wrong, or nothing."""
        os.close(self._stdin)
        status = self._guest.wait(self._job, PATIENCE_S)
        if status != 0:
            return self._err.decode()
        *rounds, last = self._out.decode().splitlines()
        # Nothing on the way to the host was lost or doubled either.
        assert rounds == [str(number) for number in range(1, len(rounds) + 1)]
        assert last == f"right {len(rounds)}"
        return ""
