"""The Python API (layer 5b): ``run`` and ``Sandbox``, with the names and behaviour of ``subprocess``.

Everything here may be called from any thread. The host program is never forked: the domain's processes belong to a
supervisor started by posix_spawn, and one thread of the host program per sandbox talks to the guest.
"""

from __future__ import annotations

from cloche.api.domain import Domain, Output
from cloche.api.machine import Machine
from cloche.api.pool import Waiting, clear_pool, fill_pool, list_pool, set_pool
from cloche.api.popen import DEVNULL, PIPE, STDOUT, Popen, TimeoutExpired
from cloche.api.profile import Profile
from cloche.api.programs import RUN_OPTIONS, CalledProcessError, CompletedProcess
from cloche.api.sandbox import Sandbox, run
from cloche.api.snapshots import Snapshot

__all__ = [
    "DEVNULL",
    "PIPE",
    "RUN_OPTIONS",
    "STDOUT",
    "CalledProcessError",
    "CompletedProcess",
    "Domain",
    "Machine",
    "Output",
    "Popen",
    "Profile",
    "Sandbox",
    "Snapshot",
    "TimeoutExpired",
    "Waiting",
    "clear_pool",
    "fill_pool",
    "list_pool",
    "run",
    "set_pool",
]
