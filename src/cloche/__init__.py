"""cloche: run any program of this machine inside a virtual machine of its own.

``run`` and ``Sandbox`` follow ``subprocess`` in names and behaviour; ``cloche.aio`` follows asyncio. The names are
loaded when they are first used, so that importing the package costs nothing on the way to starting a machine.
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False

if TYPE_CHECKING:
    from cloche.api import (
        DEVNULL,
        PIPE,
        STDOUT,
        CalledProcessError,
        CompletedProcess,
        Domain,
        Output,
        Popen,
        Profile,
        Sandbox,
        Snapshot,
        TimeoutExpired,
        Waiting,
        clear_pool,
        fill_pool,
        list_pool,
        run,
        set_pool,
    )
    from cloche.errors import ClocheError

__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "CalledProcessError",
    "ClocheError",
    "CompletedProcess",
    "Domain",
    "Output",
    "Popen",
    "Profile",
    "Sandbox",
    "Snapshot",
    "TimeoutExpired",
    "Waiting",
    "__version__",
    "clear_pool",
    "fill_pool",
    "list_pool",
    "run",
    "set_pool",
]


def __getattr__(name: str) -> object:
    if name == "ClocheError":
        from cloche.errors import ClocheError

        return ClocheError
    if name in __all__:
        from cloche import api

        return getattr(api, name)
    raise AttributeError(f"module 'cloche' has no attribute {name!r}")
