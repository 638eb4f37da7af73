"""The asyncio API (layer 5b): what ``cloche`` has, with ``await``; processes are named as in ``asyncio.subprocess``.

The same machinery as ``cloche.api``: a thread per sandbox talks to the guest, and tells the event loop when a program
has ended. What starts and ends machines and programs is done in worker threads; pipes are asyncio streams.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cloche import api
from cloche.aio.kept import Snapshot, clear_pool, fill_pool, list_pool, set_pool
from cloche.aio.machines import Domain, Sandbox
from cloche.aio.process import Process
from cloche.api import DEVNULL, PIPE, STDOUT, CompletedProcess

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloche.api.programs import Word

__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "Domain",
    "Process",
    "Sandbox",
    "Snapshot",
    "clear_pool",
    "fill_pool",
    "list_pool",
    "run",
    "set_pool",
]


async def run(
    args: Sequence[Word], *, timeout: float | None = None, sandbox: Sandbox | None = None, **options: Any
) -> CompletedProcess[Any]:
    """Run a program in a machine of its own; the arguments are those of ``cloche.run``.

    Cancelling it ends the program.

    Raises:
        CalledProcessError, TimeoutExpired, ClocheError: As ``cloche.run``.
    """
    running = {name: options.pop(name) for name in api.RUN_OPTIONS if name in options}
    if sandbox is not None:
        return await sandbox.run(args, timeout=timeout, **running)
    async with Sandbox(**options) as fresh:
        return await fresh.run(args, timeout=timeout, **running)
