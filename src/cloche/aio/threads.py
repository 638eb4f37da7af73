"""What threads do for the event loop, and what becomes of it when that is cancelled (layer 5b)."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from cloche.errors import ClocheError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


async def undone(starting: Awaitable[T], undo: Callable[[T], object]) -> T:
    """Wait for a thread's ``starting``; when that is cancelled, take back what it has started.

    The thread cannot be stopped: it comes to its end, and only then is the cancellation passed on, however often it is
    repeated meanwhile.
    """

    async def take_back() -> None:
        with suppress(ClocheError):  # what did not start need not be taken back
            await asyncio.to_thread(undo, await task)

    task = asyncio.ensure_future(starting)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        undoing = asyncio.ensure_future(take_back())
        while not undoing.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([undoing])
        undoing.result()
        raise


async def aside(work: Callable[[], T]) -> T:
    """Have a thread of its own do what may take for ever.

    When it is cancelled the thread is left to itself; neither the event loop nor the program's end waits for it.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(set_outcome: Callable[[], None]) -> None:
        if not done.done():
            set_outcome()

    def run() -> None:
        try:
            outcome = partial(done.set_result, work())
        except Exception as error:  # noqa: BLE001 - whoever waits gets it
            outcome = partial(done.set_exception, error)
        with suppress(RuntimeError):  # the event loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell, outcome)

    threading.Thread(target=run, name="cloche-aside", daemon=True).start()
    return await done
