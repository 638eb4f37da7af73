"""Reading the filters of system calls that a process has (layer 3a): only root can, where nothing filters root itself.

The kernel gives a filter back, as it was put on, to whoever traces the process and has CAP_SYS_ADMIN in the first user
namespace (PTRACE_SECCOMP_GET_FILTER, ptrace(2); it needs CONFIG_CHECKPOINT_RESTORE). The process stands still for a
fraction of a millisecond meanwhile; should the reader be killed, the kernel lets it go on.
"""

from __future__ import annotations

import ctypes
import os

_SEIZE, _INTERRUPT, _GET_FILTER, _DETACH = 0x4206, 0x4207, 0x420C, 17
_WALL = 0x4000_0000
#: Bytes of one instruction (struct sock_filter).
_INSTRUCTION = 8


def read_filters(pid: int) -> tuple[bytes, ...] | None:
    """Return the filters of a process, the one that was put on first at the beginning; None when the kernel refuses."""
    trace = ctypes.CDLL(None).ptrace
    trace.restype = ctypes.c_long
    trace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    if trace(_SEIZE, pid, None, None) < 0:
        return None
    try:
        if trace(_INTERRUPT, pid, None, None) < 0:
            return None
        # It stops, or has ended: then there is nothing to be asked any more.
        if not os.WIFSTOPPED(os.waitpid(pid, _WALL)[1]):
            return None
        found: list[bytes] = []
        # The number of instructions, and an error behind the last filter.
        while (length := trace(_GET_FILTER, pid, len(found), None)) > 0:
            program = ctypes.create_string_buffer(length * _INSTRUCTION)
            if trace(_GET_FILTER, pid, len(found), program) != length:
                return None
            found.append(program.raw)
        return tuple(found) or None
    except ChildProcessError:
        return None
    finally:
        trace(_DETACH, pid, None, None)
