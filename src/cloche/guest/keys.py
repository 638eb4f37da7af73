"""A terminal beside a program's standard input, as at the end of a pipe (layer 3).

``seq 500 | less`` reads numbers from the pipe and keys from the terminal; ``ssh host ls | grep x`` leaves the terminal
to ``ssh``. So the caller's terminal is left as it is, and its keys unread, until the agent says that the program has
begun to use its own: by the first credit of the stream that carries them.
"""

from __future__ import annotations

import fcntl

from cloche.guest.fdio import in_foreground
from cloche.guest.pumps import InputPump
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.guest.fdio import FdWriter
    from cloche.guest.pumps import Link
    from cloche.guest.streams import Sender

_TCGETS = 0x5401
_MODE_SIZE = 36
#: Where the local modes are in the kernel's ``struct termios``, and the one that makes lines.
_LOCAL_MODES, _ICANON = slice(12, 16), 2


class KeysPump(InputPump):
    """Reads what is typed on ``fd``; ``wanted`` is called, once, before the first of it is read."""

    def __init__(self, link: Link, sender: Sender, fd: int, wanted: Callable[[], None]) -> None:
        super().__init__(link, sender, fd)
        self._wanted: Callable[[], None] | None = wanted

    def update(self) -> None:
        """The stream has news: its first credit asks for the keys."""
        if self._wanted is not None and not self.closed and self._sender.credit:
            wanted, self._wanted = self._wanted, None
            wanted()
        super().update()


def in_lines(fd: int) -> bool:
    """Whether a program that has not set the mode of its terminal may read it.

    Not while somebody else has: a pager at the end of the same pipe, another cloche, whose single keys these are.
    """
    if not in_foreground(fd):
        return False
    try:
        mode = fcntl.ioctl(fd, _TCGETS, bytes(_MODE_SIZE))
    except OSError:
        return True  # it is gone, which reading will show
    return bool(int.from_bytes(mode[_LOCAL_MODES], "little") & _ICANON)


class CookedWriter:
    r"""Writes what the guest's terminal has made ready to be shown to one that makes it ready once more.

    The guest's makes ``\r\n`` of every ``\n``, and so does the caller's as long as it is not raw.
    """

    def __init__(self, writer: FdWriter, is_raw: Callable[[], bool]) -> None:
        self._writer = writer
        self._is_raw = is_raw

    def fileno(self) -> int:
        """What to wait on."""
        return self._writer.fileno()

    def write(self, data: bytes | memoryview) -> int:
        """Write as much as there is room for; return how much of ``data`` that was."""
        if self._is_raw():
            return self._writer.write(data)
        lines = bytes(data).split(b"\r\n")
        left = self._writer.write(b"\n".join(lines))
        taken = 0
        for line in lines:
            if left <= len(line):
                return taken + left
            taken += len(line) + 2
            left -= len(line) + 1
        return taken

    def close(self) -> None:
        """Let go of the descriptor."""
        self._writer.close()
