"""Doing something that waits for a disk beside everything else (layer 3a), without importing ``threading``."""

from __future__ import annotations

from _thread import allocate_lock, start_new_thread

from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Aside:
    """Work that a thread of its own does. Whoever needs it to be done waits, in any case before the process forks."""

    def __init__(self, work: Callable[[], None]) -> None:
        """Begin."""
        self._work = work
        self._error: OSError | None = None
        self._running = allocate_lock()
        self._running.acquire()
        start_new_thread(self._run, ())

    def _run(self) -> None:
        try:
            self._work()
        except OSError as error:
            self._error = error
        finally:
            self._running.release()

    def wait(self) -> None:
        """Wait until it is done. May be called again.

        Raises:
            OSError: As the work has raised.
        """
        self.settle()
        if self._error is not None:
            raise self._error

    def settle(self, timeout_s: float = -1) -> bool:
        """Wait until it is over, one way or the other, or for so long at most; returns whether it is."""
        is_over = self._running.acquire(timeout=timeout_s)
        if is_over:
            self._running.release()
        return is_over
