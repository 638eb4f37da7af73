"""A shell in a running guest, to be asked what it sees while the domain is changed from outside."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.runs import Runner

_END = b"-end-of-answer-"


class Live:
    """A domain with a shell in it, and the command line beside it."""

    def __init__(self, runner: Runner, process: subprocess.Popen[bytes], mark: str) -> None:
        self._runner = runner
        self.process = process
        self.sees("true")
        found = json.loads(runner("ps", "--json").stdout)
        (self.ident,) = [one["domain"] for one in found if mark in one.get("program", ())]

    def sees(self, command: str) -> str:
        """Return what a command says in the guest."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command.encode() + b"; echo " + _END + b"\n")
        self.process.stdin.flush()
        said = b""
        while not said.endswith(_END + b"\n"):
            line = self.process.stdout.readline()
            assert line, f"the guest is gone after {said!r}"
            said += line
        return said[: -len(_END) - 1].decode("utf-8", "surrogateescape")

    def share(self, verb: str, *words: str | bytes) -> str:
        """Change the domain's shares from outside; returns the error, or nothing."""
        options = [word for word in words if word in ("--force", "--json")]
        rest = [word for word in words if word not in options]
        done = self._runner("share", verb, *options, self.ident, *rest)
        if done.returncode == 0:
            return ""
        assert done.returncode == 125, done
        return done.stderr.decode("utf-8", "surrogateescape")

    def listed(self) -> list[dict[str, object]]:
        """Return what ``share list`` says."""
        done = self._runner("share", "list", "--json", self.ident)
        assert done.returncode == 0, done.stderr
        rows: list[dict[str, object]] = json.loads(done.stdout)
        return rows

    def audit(self) -> dict[str, object]:
        """Return what the audit says; everything must hold."""
        done = self._runner("audit", "--json", self.ident)
        verdict: dict[str, object] = json.loads(done.stdout)
        assert verdict["ok"], verdict["failures"]
        return verdict


@contextmanager
def live(runner: Runner, *options: str) -> Iterator[Live]:
    """Provide a domain with a shell, started with these options of ``run``."""
    mark = f"live-{os.urandom(6).hex()}"
    process = runner.popen(
        "run", *options, "--", "sh", "-c", "exec 2>&1; exec sh", mark, stdin=subprocess.PIPE
    )
    with process:
        yield Live(runner, process, mark)
