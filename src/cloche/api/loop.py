"""The thread that talks to one guest (layer 5b)."""

from __future__ import annotations

import os
import threading

from cloche.domain.domain import Domain
from cloche.domain.programs import Programs
from cloche.domain.remote import RemoteLauncher
from cloche.domain.states import State
from cloche.errors import ClocheError, DomainError
from cloche.host.reactor import Reactor
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cloche.host.profile_lock import Hold
    from cloche.model.plan import LaunchPlan


class Loop:
    """The thread that drives one domain. Calls come from any thread; answers come through events."""

    def __init__(self, plan: LaunchPlan, boot: Callable[[], LaunchPlan], hold: Hold | None = None) -> None:
        self._process = os.getpid()
        self._reactor = Reactor()
        self._domain = Domain(self._reactor, plan, launcher=RemoteLauncher, boot=boot)
        self._programs = Programs(self._domain)
        self._programs.lasting = True
        self._hold = hold
        self._domain.on_open = self._opened
        self._domain.on_end = self._ended
        self._opened_or_over = threading.Event()
        self._error: ClocheError | None = None
        self._over = False
        self._finished = False
        self._ending = threading.Lock()
        self._dropped = False
        self._watchers: set[Callable[[ClocheError], None]] = set()
        self._thread = threading.Thread(target=self._run, name="cloche", daemon=True)

    def open(self) -> None:
        """Start the thread and the machine, and return when programs can be started.

        Raises:
            ClocheError: The machine did not come up.
        """
        self._thread.start()
        self._opened_or_over.wait()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        if self._hold is not None:
            self._domain.on_attached = self._hold.secured
        try:
            self._domain.start()
            if self._hold is not None:
                self._hold.began(self._domain.ident)
            self._reactor.run_until(lambda: self._over)
        except ClocheError as error:
            self._ended(error)
        finally:
            self._domain.close()
            if self._hold is not None:
                self._hold.release(is_clean=self._domain.is_settled)
            # Whoever still waits for a program's start or end learns that there will be none.
            with self._ending:
                self._finished = True
            self._ended(self._error or DomainError("the sandbox has ended"))
            if self._dropped:
                self._reactor.close()

    def _opened(self) -> None:
        self._opened_or_over.set()

    def _ended(self, error: ClocheError) -> None:
        self._error = error
        self._over = True
        self._opened_or_over.set()
        for watcher in list(self._watchers):
            watcher(error)

    def call(self, function: Callable[[Domain], Any]) -> Any:
        """Run ``function`` in the loop's thread and return what it returns or raise what it raises."""
        if self._error is not None:
            raise self._error
        if os.getpid() != self._process:
            raise DomainError(
                "the sandbox belongs to the process that started it, of which this is a fork",
                hint="Start a sandbox of its own in each process.",
            )
        done = threading.Event()
        result: list[Any] = [None, None]

        def work() -> None:
            try:
                result[0] = function(self._domain)
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                result[1] = error
            done.set()

        def lost(error: ClocheError) -> None:
            result[1] = result[1] or error
            done.set()

        self._watchers.add(lost)
        try:
            # Added before this is asked: a thread that ends from now on tells ``lost``, which nobody has to poll for.
            with self._ending:
                if self._finished:
                    raise DomainError("the sandbox has ended")
                self._reactor.call_soon_threadsafe(work)
            done.wait()
        finally:
            self._watchers.discard(lost)
        if result[1] is not None:
            raise result[1]
        return result[0]

    def ask(self, start: Callable[[Domain, Callable[[ClocheError | None], None]], None]) -> None:
        """Have ``start`` begin something in the loop's thread, and return when it calls back.

        Raises:
            ClocheError: What it calls back with, or why the machine has ended meanwhile.
        """
        over = threading.Event()
        error: list[ClocheError] = []

        def answer(why: ClocheError | None) -> None:
            if why is not None:
                error.append(why)
            over.set()

        self._watchers.add(answer)
        try:
            self.call(lambda domain: start(domain, answer))
            over.wait()
        finally:
            self._watchers.discard(answer)
        if error:
            raise error[0]

    def watch(self, watcher: Callable[[ClocheError], None]) -> None:
        """Call ``watcher`` with the reason when the machine ends by itself."""
        self._watchers.add(watcher)

    def unwatch(self, watcher: Callable[[ClocheError], None]) -> None:
        """Forget a watcher."""
        self._watchers.discard(watcher)

    def close(self) -> None:
        """End the machine and the thread; what programs wrote to shares is on the host. May be called twice."""
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._reactor.call_soon_threadsafe(self._finish)
            self._thread.join()
        if not self._thread.is_alive():
            self._reactor.close()
        self._error = self._error or DomainError("the sandbox has ended")

    def drop(self) -> bool:
        """End the machine without waiting for it, as ``close`` does; return whether there was anything to end.

        For a garbage collector, which may call it in any thread, this loop's too, and whatever locks are held there.
        """
        if os.getpid() != self._process or not self._thread.is_alive() or self._error is not None:
            return False
        self._dropped = True
        self._error = DomainError(
            "the sandbox has ended: nothing in the program held it any more",
            hint="Use it in a `with` statement, or keep it until close().",
        )
        self._reactor.call_soon_threadsafe(self._finish)
        return True

    def _finish(self) -> None:
        def over() -> None:
            self._over = True

        if self._domain.state is State.RUNNING:
            self._domain.finish(over)
        else:
            over()
