"""Giving up system calls in this process (layer 3a): the supervisor's own filter, ``policies/supervisor.toml``.

Whatever this process starts afterwards has the filter, too, and could not make a domain. What has to be started later
by cloche itself is an ``Errand``, made before.
"""

from __future__ import annotations

import os

from cloche.errors import LaunchError
from cloche.host.tools import read_filter
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

POLICY = "supervisor"
#: prctl(2), seccomp(2).
_SET_NO_NEW_PRIVS, _SET_SECCOMP, _MODE_FILTER = 38, 22, 2
#: Bytes of one instruction (struct sock_filter).
_INSTRUCTION = 8
_GO = 3


def confine() -> None:
    """Put the supervisor's filter on this thread, which must be the only one, for good.

    Raises:
        LaunchError: The filter was not built, or the kernel refuses it.
    """
    import ctypes

    code = read_filter(POLICY)
    if not code:
        raise LaunchError(
            "cannot limit the supervisor's system calls: its filter is not built",
            hint="`make setup` builds it; --insecure-no-jail=seccomp starts domains unfiltered.",
        )

    class Program(ctypes.Structure):
        # struct sock_fprog of linux/filter.h
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))

    program = Program(len(code) // _INSTRUCTION, code)
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if (
        libc.prctl(_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero) != 0
        or libc.prctl(_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), ctypes.byref(program)) != 0
    ):
        raise LaunchError(
            f"cannot limit the supervisor's system calls: {os.strerror(ctypes.get_errno())}",
            hint="This kernel cannot filter system calls so; --insecure-no-jail=seccomp starts domains unfiltered.",
        )


class Errand:
    """Work for later, in a process that has given up nothing: a child that waits for the word, and ends without it.

    It has nothing of this process's but the end of a pipe, so it neither keeps a domain alive nor outlives its parent.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        """Make the child. This process must have one thread."""
        reader, self._writer = os.pipe2(os.O_CLOEXEC)
        if os.fork() == 0:
            _wait_and_do(reader, work)
        os.close(reader)

    def go(self) -> None:
        """Give the word. The work is done whatever becomes of this process. Harmless when it was given."""
        if self._writer < 0:
            return
        try:
            os.write(self._writer, b"1")
        except OSError:
            pass  # somebody has ended the child: what it was for can be done the next time
        self.forget()

    def forget(self) -> None:
        """Give no word: the child ends. Harmless when it was given."""
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1


def _wait_and_do(reader: int, work: Callable[[], None]) -> None:
    try:
        # First of all: this is what keeps a domain alive, and its terminal in use.
        if reader != _GO:
            os.dup2(reader, _GO, inheritable=False)
        os.closerange(_GO + 1, os.sysconf("SC_OPEN_MAX"))
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for number in range(3):
            os.dup2(null, number)
        os.setsid()
        if os.read(_GO, 1):
            work()
    finally:
        os._exit(0)
