"""A terminal for a program under test, watched by what appears on it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from support.users import OrdinaryUser


class TerminalProgram:
    """A program on a terminal of its own, as a session leader, run as ``user``."""

    def __init__(self, user: OrdinaryUser, argv: list[str], *, rows: int = 30, cols: int = 100) -> None:
        self.master, slave = pty.openpty()
        self.resize(rows, cols)
        entry = user.entry
        other = entry.pw_uid != os.geteuid()
        self.process = subprocess.Popen(
            # setsid -c makes the terminal the controlling one, which Popen alone cannot.
            ["setsid", "-c", *argv],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=user.environment({"TERM": "xterm"}),
            cwd=user.home,
            user=entry.pw_uid if other else None,
            group=entry.pw_gid if other else None,
            extra_groups=[] if other else None,
        )
        self.slave = slave
        self.seen = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.slave)
        os.close(self.master)

    def resize(self, rows: int, cols: int) -> None:
        """Change the size, as a terminal emulator does."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def type(self, text: bytes) -> None:
        """Press these keys."""
        os.write(self.master, text)

    def expect(self, text: bytes, timeout: float = 90) -> bytes:
        """Read until ``text`` appears and return everything up to its end; fails with what was seen."""
        deadline = time.monotonic() + timeout
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise AssertionError(f"{text!r} did not appear; seen: {self.seen[-2000:]!r}")
            try:
                self.seen += os.read(self.master, 65536)
            except OSError:
                raise AssertionError(
                    f"the terminal closed before {text!r}; seen: {self.seen[-2000:]!r}"
                ) from None
        head, _, self.seen = self.seen.partition(text)
        return head + text

    def wait(self, timeout: float = 90) -> int:
        """Read on, as a terminal does, until the program has ended; return its status."""
        deadline = time.monotonic() + timeout
        pidfd = os.pidfd_open(self.process.pid)
        try:
            while True:
                left = max(0.0, deadline - time.monotonic())
                ready, _, _ = select.select([self.master, pidfd], [], [], left)
                if not ready:
                    raise AssertionError(f"the program does not end; seen: {self.seen[-2000:]!r}")
                if self.master in ready:
                    self.seen += os.read(self.master, 65536)
                elif pidfd in ready:
                    return self.process.wait()
        finally:
            os.close(pidfd)

    def mode(self) -> list[object]:
        """Return the terminal's settings."""
        return termios.tcgetattr(self.slave)
