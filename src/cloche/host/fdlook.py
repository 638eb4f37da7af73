"""The open files of another process (layer 3a), for ``cloche.host.procfs``."""

from __future__ import annotations

import os

from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from ctypes import CDLL
    from typing import Self

#: include/uapi/asm-generic/unistd.h; the same on every architecture.
_PIDFD_GETFD = 438
#: What stands in the column Type of /proc/net/unix (include/linux/net.h).
_UNIX_TYPES = {1: "stream", 2: "datagram", 5: "seqpacket"}
_INTERNET = ("tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "raw", "raw6", "icmp", "icmp6")
_ACCESS = {os.O_RDONLY: "r", os.O_WRONLY: "w", os.O_RDWR: "rw"}
_O_PATH = 0o10000000

#: Sockets by their inode, each in words.
Sockets = dict[int, str]


class OpenFile(Record):
    """An open file: its number, what it is, and how it may be used (r, w, rw, or path for neither)."""

    number: int
    target: str
    access: str


def read_sockets(pid: int | str) -> Sockets:
    """Return the sockets of a process's network namespace; those of none when it may not be asked."""
    found: Sockets = {}
    for line in _lines(f"/proc/{pid}/net/unix"):
        # Num RefCount Protocol Flags Type St Inode [Path]
        fields = line.split(None, 7)
        # A path may hold ends of lines, and so may begin lines that are none of the kernel's.
        if len(fields) < 7 or not fields[0].endswith(":") or not (fields[4] + fields[6]).isdecimal():
            continue
        kind = _UNIX_TYPES.get(int(fields[4]), "unknown")
        where = f" {fields[7]}" if len(fields) > 7 else ""
        found.setdefault(int(fields[6]), f"unix {kind} socket{where}")
    for name in _INTERNET:
        for line in _lines(f"/proc/{pid}/net/{name}"):
            fields = line.split()
            found[int(fields[9])] = f"{name} socket"
    for name, column in (("packet", 8), ("netlink", 9)):
        for line in _lines(f"/proc/{pid}/net/{name}"):
            found[int(line.split()[column])] = f"{name} socket"
    return found


def read_files(pid: int, sockets: Sockets) -> tuple[OpenFile, ...] | None:
    """Return what a process has open, or None when the kernel does not tell us.

    Raises:
        FileNotFoundError, ProcessLookupError: It has ended.
    """
    try:
        # Unlike fd/, this directory is open to the owner of the process's user namespace.
        numbers = sorted(int(name) for name in os.listdir(f"/proc/{pid}/fdinfo"))
    except PermissionError:
        return None
    known = {**sockets, **read_sockets(pid)}
    with _Borrower(pid) as borrower:
        return tuple(
            OpenFile(number, _describe(target, known), _access(pid, number))
            for number in numbers
            if (target := borrower.target(number)) is not None
        )


def _describe(target: str, sockets: Sockets) -> str:
    if not target.startswith("socket:["):
        return target
    return sockets.get(int(target[8:-1]), "socket of another network namespace")


def _access(pid: int, number: int) -> str:
    try:
        with open(f"/proc/{pid}/fdinfo/{number}", encoding="ascii", errors="replace") as file:
            flags = next((int(line.split()[1], 8) for line in file if line.startswith("flags:")), 0)
    except OSError:
        return ""  # it was closed meanwhile
    return "path" if flags & _O_PATH else _ACCESS.get(flags & os.O_ACCMODE, "")


class _Borrower:
    """Looks at the files of one process: by its own links, or by borrowing a copy of the descriptor for a moment.

    The copy is close-on-exec and closed at once. It changes nothing for the process: neither position, nor locks, nor
    what it waits for.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._pidfd = os.pidfd_open(pid)
        self._libc: CDLL | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._pidfd)

    def target(self, number: int) -> str | None:
        """Return what a descriptor refers to; None when it was closed meanwhile."""
        try:
            return os.readlink(f"/proc/{self._pid}/fd/{number}")
        except FileNotFoundError:
            return None
        except PermissionError:
            return self._borrow(number)

    def _borrow(self, number: int) -> str | None:
        import ctypes
        import errno

        libc = self._libc = self._libc or ctypes.CDLL(None, use_errno=True)
        copy: int = libc.syscall(_PIDFD_GETFD, self._pidfd, number, 0)
        if copy < 0:
            code = ctypes.get_errno()
            if code == errno.EBADF:
                return None
            return f"not readable ({os.strerror(code)})"
        try:
            return os.readlink(f"/proc/self/fd/{copy}")
        finally:
            os.close(copy)


def _lines(path: str) -> list[str]:
    """Return the lines of a table below its heading; none when there is no such table, or not for us."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            # Not splitlines: a socket's name may hold what ends a line to Python and not to the kernel.
            return file.read().split("\n")[1:-1]
    except OSError:
        return []
