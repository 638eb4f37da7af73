"""Non-blocking reads and writes on descriptors that belong to somebody else (layer 3).

The user's standard streams are open file descriptions shared with the shell and with other programs: setting
O_NONBLOCK on them would change them for everybody, and readiness alone is no promise, because somebody else may take
the bytes or the room first. So each kind of file is used in the way that cannot block per call:

- pipes and terminals: opened anew through /proc/self/fd, which gives a file description of our own that may have
  O_NONBLOCK. Not for regular files (the offset of the shared description counts, as in ``(a; cloche b) > file``),
  and not for a pty's master (that would be a new pty).
- pipes where that is refused (another user's): splice(2) with SPLICE_F_NONBLOCK from or to a pipe of our own. The
  flag counts for that call only. Writing PIPE_BUF bytes when poll says "writable" would still block when another
  writer of the same pipe takes the room first.
- terminals where that is refused (another user's, after su): readiness is asked just before every small read or
  write, which blocks only if another process is faster.
- sockets: MSG_DONTWAIT.
- everything else: as is. Regular files and /dev/null do not block in this sense.

Each object works on a duplicate and closes that; the caller keeps what it passed.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat

from cloche.lean import socket
from cloche.record import Protocol

#: What a terminal's line discipline takes without waiting once it says it is writable.
_TTY_STEP = 256
_PIPE_SIZE = 65536
#: How often a job in the background looks whether it is in the foreground, in seconds.
BACKGROUND_S = 0.2


class FdReader(Protocol):
    """A source of bytes that can be waited for."""

    def fileno(self) -> int:
        """What to wait on."""
        raise NotImplementedError

    def read(self, size: int) -> bytes | None:
        """At most ``size`` bytes, ``b""`` at the end, None when there is nothing now. Raises OSError."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the descriptor."""


class FdWriter(Protocol):
    """A sink of bytes that can be waited for."""

    def fileno(self) -> int:
        """What to wait on."""
        raise NotImplementedError

    def write(self, data: bytes | memoryview) -> int:
        """How much of ``data`` was taken, 0 when there is no room now. Raises OSError.

        After an answer that is less than everything, the next call must go on with the rest.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the descriptor."""


def in_foreground(fd: int) -> bool:
    """Whether this process may use ``fd``: false for a terminal that a shell has given to another job."""
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return True  # no terminal, or not the one that rules this process


def _duplicate(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


class _Plain:
    """Files that never block, and descriptions of our own that have O_NONBLOCK."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def read(self, size: int) -> bytes | None:
        try:
            return os.read(self._fd, size)
        except BlockingIOError:
            return None

    def write(self, data: bytes | memoryview) -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0

    def close(self) -> None:
        os.close(self._fd)


class _Asking(_Plain):
    """Shared descriptions with nothing better: ask, then move a little."""

    __slots__ = ("_poll",)

    def __init__(self, fd: int, events: int) -> None:
        super().__init__(fd)
        self._poll = select.poll()
        self._poll.register(fd, events)

    def read(self, size: int) -> bytes | None:
        return super().read(size) if self._poll.poll(0) else None

    def write(self, data: bytes | memoryview) -> int:
        return super().write(data[:_TTY_STEP]) if self._poll.poll(0) else 0


class _Socket:
    __slots__ = ("_socket",)

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self, size: int) -> bytes | None:
        try:
            return self._socket.recv(size, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None

    def write(self, data: bytes | memoryview) -> int:
        try:
            return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0

    def close(self) -> None:
        self._socket.close()


class _Pipe:
    """A pipe seen through one of our own, which can hold ``_PIPE_SIZE`` bytes."""

    __slots__ = ("_fd", "_inside", "_own_read", "_own_write")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._own_read, self._own_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._inside = 0  # bytes in our own pipe

    def fileno(self) -> int:
        return self._fd

    def read(self, size: int) -> bytes | None:
        try:
            moved = os.splice(self._fd, self._own_write, size, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            return None
        return os.read(self._own_read, moved) if moved else b""

    def write(self, data: bytes | memoryview) -> int:
        if not self._inside:
            self._inside = os.write(self._own_write, data[:_PIPE_SIZE])
        try:
            moved = os.splice(self._own_read, self._fd, self._inside, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            return 0
        self._inside -= moved
        return moved

    def close(self) -> None:
        os.close(self._fd)
        os.close(self._own_read)
        os.close(self._own_write)


def _open(fd: int, access: int) -> _Plain | _Socket | _Pipe:
    status = os.fstat(fd)
    kind = stat.S_IFMT(status.st_mode)
    own = _duplicate(fd)
    if kind == stat.S_IFIFO:
        return _open_anew(own, access) or _Pipe(own)
    if kind == stat.S_IFSOCK:
        return _Socket(own)
    if kind != stat.S_IFCHR or not os.isatty(own):
        return _Plain(own)
    is_master = (os.major(status.st_rdev), os.minor(status.st_rdev)) == (5, 2)
    again = None if is_master else _open_anew(own, access)
    return again or _Asking(own, select.POLLIN if access == os.O_RDONLY else select.POLLOUT)


def _open_anew(own: int, access: int) -> _Plain | None:
    """Return the same file by a description of our own, None where that is refused; ``own`` is then still open."""
    try:
        again = os.open(f"/proc/self/fd/{own}", access | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None  # another user's, a pipe without readers, or no /proc: the careful way works too
    os.close(own)
    return _Plain(again)


def open_reader(fd: int) -> FdReader:
    """A reader for any kind of ``fd``, which stays the caller's. Raises OSError (EBADF, EMFILE)."""
    return _open(fd, os.O_RDONLY)


def open_writer(fd: int) -> FdWriter:
    """A writer for any kind of ``fd``, which stays the caller's. Raises OSError (EBADF, EMFILE)."""
    return _open(fd, os.O_WRONLY)
