"""The terminal's mode after SIGKILL of the command line, which cannot restore it itself."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import termios
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.domains import domain_processes
from support.pty import TerminalProgram
from support.wardens import PATIENCE_S, wait_dead

if TYPE_CHECKING:
    from support.runs import Runner

#: A command line that does not tell the keeper of its terminal.
MUTANT = """
import sys
sys.path.insert(0, {source!r})
from cloche.host.keeper import Keeper
Keeper.raw = lambda *_: None
from cloche.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(params=["cloche", "cloche_as_caller"])
def runner(request: pytest.FixtureRequest) -> Runner:
    """Provide cloche as an ordinary user runs it, and as whoever runs the tests (root, in many containers)."""
    found: Runner = request.getfixturevalue(request.param)
    return found


def modes_around_a_kill(runner: Runner, program: str, *, group: bool) -> tuple[list[object], ...]:
    """Kill a command line in a shell that leaves modes alone; return the terminal's mode before, in and after it."""
    with TerminalProgram(runner.user, ["env", "PS1=next> ", "dash", "-i"]) as on:
        on.expect(b"next> ")
        before = on.mode()
        on.type(f"{program} sh -c 'echo rea\"\"dy; read x'\r".encode())
        on.expect(b"ready")
        within = on.mode()
        leader = os.tcgetpgrp(on.master)
        keepers = [pid for pid in domain_processes(leader) if _name(pid) == "cloche-warden"]
        assert len(keepers) == 1
        pidfd = os.pidfd_open(keepers[0])
        if group:
            os.killpg(leader, signal.SIGKILL)
        else:
            os.kill(leader, signal.SIGKILL)
        assert wait_dead([pidfd], PATIENCE_S) == []
        os.close(pidfd)
        after = on.mode()
        on.type(b"exit\n")
        on.wait()
    return before, within, after


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


@pytest.mark.parametrize("group", [False, True], ids=["process", "group"])
def test_mode_is_restored_after_sigkill(runner: Runner, group: bool) -> None:
    """SIGKILL of the command line, or of its whole process group, leaves the terminal as it was before."""
    before, within, after = modes_around_a_kill(runner, runner.program, group=group)
    assert within != before
    assert after == before


def test_without_the_keeper_the_terminal_stays_raw(cloche: Runner) -> None:
    """The twin: a command line that does not tell its keeper of the terminal leaves it raw when it is killed."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as mutant:
        mutant.write(MUTANT.format(source=str(cloche.user.project / "src")))
        mutant.flush()
        os.chmod(mutant.name, 0o644)
        before, within, after = modes_around_a_kill(
            cloche, f"/usr/bin/python3 -IS {mutant.name}", group=False
        )
    assert within != before
    assert after == within


def test_a_mode_set_meanwhile_is_left_alone(cloche: Runner) -> None:
    """When something else has set the terminal's mode before the kill, that one stays."""
    with TerminalProgram(cloche.user, ["env", "PS1=next> ", "dash", "-i"]) as on:
        on.expect(b"next> ")
        on.type(f"{cloche.program} sh -c 'echo rea\"\"dy; read x'\r".encode())
        on.expect(b"ready")
        leader = os.tcgetpgrp(on.master)
        keepers = [pid for pid in domain_processes(leader) if _name(pid) == "cloche-warden"]
        pidfd = os.pidfd_open(keepers[0])
        mode = termios.tcgetattr(on.slave)
        mode[3] |= termios.ISIG
        termios.tcsetattr(on.slave, termios.TCSANOW, mode)
        os.kill(leader, signal.SIGKILL)
        assert wait_dead([pidfd], PATIENCE_S) == []
        os.close(pidfd)
        assert on.mode() == mode
        on.type(b"exit\n")
        on.wait()


def test_one_without_a_terminal_has_no_keeper(cloche: Runner) -> None:
    """A command line whose program gets no terminal starts a warden that keeps none."""
    process = cloche.popen("sh", "-c", "echo ready; read x", stdin=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        words = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in domain_processes(process.pid)]
        assert b"cloche-warden\0" in words
        process.communicate(b"\n")
