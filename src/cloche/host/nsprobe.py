"""Trying what an equal may do to a process (layer 3a): the only way to tell whether root's processes are dumpable."""

from __future__ import annotations

import os

_CLONE_NEWUSER = 0x1000_0000
_CAPABILITY_VERSION_3 = 0x2008_0522
_YES, _NO, _UNKNOWN = 0, 1, 2


def may_look_into(pid: int, capabilities: int) -> bool | None:
    """Tell whether somebody in a process's user namespace, with these capabilities only, may look into it.

    None when that could not be tried (for want of rights, or because the process has ended).
    """
    child = os.fork()
    if child == 0:
        answer = _UNKNOWN
        try:
            answer = _try(pid, capabilities)
        finally:
            os._exit(answer)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {_YES: True, _NO: False}.get(status)


def _try(pid: int, capabilities: int) -> int:
    """Enter the namespace, give up what is too much, and read a link that is closed if the process is not dumpable."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    try:
        with open(f"/proc/{pid}/ns/user", "rb") as namespace:
            own = os.stat("/proc/self/ns/user").st_ino == os.fstat(namespace.fileno()).st_ino
            if not own and libc.setns(namespace.fileno(), _CLONE_NEWUSER) != 0:
                return _UNKNOWN
    except OSError:
        return _UNKNOWN
    low, high = capabilities & 0xFFFF_FFFF, capabilities >> 32
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    # effective, permitted, inheritable: the lower halves, then the upper ones
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    if libc.capset(header, data) != 0:
        return _UNKNOWN
    try:
        os.readlink(f"/proc/{pid}/exe")
    except PermissionError:
        return _NO
    except OSError:
        return _UNKNOWN
    return _YES
