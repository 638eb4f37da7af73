"""Runs ``cloche`` as a program, as its users do."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from support.users import OrdinaryUser


class Runner:
    """``cloche`` for one user."""

    def __init__(self, user: OrdinaryUser) -> None:
        self.user = user
        self.program = str(user.project / "bin" / "cloche")

    def __call__(
        self,
        *words: str | bytes,
        input: bytes | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run cloche with these words to its end and capture what it says."""
        return self.user.run([self.program, *words], input=input, env=env, cwd=cwd, timeout=timeout)

    def sh(self, script: str, *options: str, **more: object) -> subprocess.CompletedProcess[bytes]:
        """Run a script of ``sh`` in a guest."""
        return self(*options, "sh", "-c", script, **more)  # type: ignore[arg-type]

    def popen(
        self,
        *words: str | bytes,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
        cwd: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start cloche and return at once."""
        return self.user.popen([self.program, *words], stdin=stdin, stdout=stdout, stderr=stderr, cwd=cwd)
