"""A small single-threaded event loop on epoll (layer 3, standard library only, cheap to import).

One reactor serves everything a supervisor waits for: the agent's socket, the user's standard streams, the warden,
timers and signals. Descriptors epoll refuses (regular files, /dev/null) count as always ready, as select(2) would
say. What a callback raises comes out of ``run_once``/``run_until``; nothing is swallowed. Make it after a fork, not
before: parent and child would share the epoll instance.
"""

from __future__ import annotations

import errno
import os
import select
from _heapq import heappop, heappush  # what heapq hands on, without the module around it
from time import monotonic

from cloche.lean import signal
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Self

#: Event bits for ``register`` (those of epoll). ERR and HUP are always reported, as epoll does.
READ = select.EPOLLIN
WRITE = select.EPOLLOUT
ERROR = select.EPOLLERR
HANGUP = select.EPOLLHUP


def _ignore_signal(signo: int, frame: FrameType | None) -> None:
    """Stands in for the default action; the number arrives through the wake-up descriptor."""


class Timer:
    """A pending ``call_at``; ``cancel`` before it is due to forget it."""

    __slots__ = ("_order", "callback", "when")

    def __init__(self, when: float, order: int, callback: Callable[[], None]) -> None:
        self.when = when
        self._order = order
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Do not call it any more. Harmless when it was already called."""
        self.callback = None

    def __lt__(self, other: Timer) -> bool:
        return (self.when, self._order) < (other.when, other._order)


class _Watch:
    __slots__ = ("always", "born", "callback", "events")

    def __init__(self, events: int, callback: Callable[[int], None], born: int) -> None:
        self.events = events
        self.callback = callback
        self.born = born
        self.always = False


class Reactor:
    """The loop. Not thread-safe except ``call_soon_threadsafe``."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watches: dict[int, _Watch] = {}
        self._always: dict[int, _Watch] = {}
        self._timers: list[Timer] = []
        self._soon: list[Callable[[], None]] = []
        self._turn = 0
        self._order = 0
        self._stopped = False
        self._signals: dict[int, Callable[[int], None]] = {}
        self._old_handlers: dict[int, object] = {}
        self._old_wakeup = -1
        # A pipe, not an eventfd: signal.set_wakeup_fd writes single bytes, an eventfd wants eight.
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._foreign: list[Callable[[], None]] = []
        self.register(self._wake_read, READ, self._woken)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Restore signal handlers and close what the reactor opened. Registered descriptors stay open."""
        for signo in list(self._signals):
            self.remove_signal(signo)
        if self._wake_read >= 0:
            self._epoll.close()
            os.close(self._wake_read)
            os.close(self._wake_write)
            self._wake_read = self._wake_write = -1
        self._watches.clear()
        self._always.clear()

    # Descriptors

    def register(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call ``callback(ready_events)`` whenever one of ``events`` (or ERROR, HANGUP) holds for ``fd``.

        With ``events`` 0 only ERROR and HANGUP are reported. Raises KeyError when ``fd`` is registered already, and
        OSError (EBADF) when it is not open. Unregister before closing.
        """
        if fd in self._watches:
            raise KeyError(fd)
        watch = _Watch(events, callback, self._turn)
        try:
            self._epoll.register(fd, events)
        except PermissionError:  # EPERM: this kind of file is never not ready
            watch.always = True
            if events:
                self._always[fd] = watch
        self._watches[fd] = watch

    def modify(self, fd: int, events: int) -> None:
        """Change the events waited for. Raises KeyError when ``fd`` is not registered."""
        watch = self._watches[fd]
        if watch.events == events:
            return
        watch.events = events
        if not watch.always:
            self._epoll.modify(fd, events)
        elif events:
            self._always[fd] = watch
        else:
            self._always.pop(fd, None)

    def unregister(self, fd: int) -> None:
        """Forget ``fd``; must come before it is closed. Harmless when it is not registered."""
        watch = self._watches.pop(fd, None)
        if watch is None:
            return
        if watch.always:
            self._always.pop(fd, None)
            return
        try:
            self._epoll.unregister(fd)
        except OSError as error:
            if error.errno not in (errno.EBADF, errno.ENOENT):  # closed by its owner already
                raise

    def registered(self, fd: int) -> bool:
        """Whether ``fd`` is being watched."""
        return fd in self._watches

    # Timers and calls

    def time(self) -> float:
        """The clock timers use: monotonic seconds."""
        return monotonic()

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` once ``time()`` has reached ``when``."""
        self._order += 1
        timer = Timer(when, self._order, callback)
        heappush(self._timers, timer)
        return timer

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` in ``delay`` seconds."""
        return self.call_at(monotonic() + delay, callback)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` at the end of this turn; when called from such a callback, of the next one."""
        self._soon.append(callback)

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        """Like ``call_soon``, from any thread; wakes the loop. Raises OSError (EBADF) after ``close``."""
        self._foreign.append(callback)  # append and pop(0) are atomic under the interpreter's lock
        self._wake()

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:
            return  # full of wake-ups nobody has read yet: one more adds nothing

    def _woken(self, _events: int) -> None:
        for byte in os.read(self._wake_read, 4096):
            callback = self._signals.get(byte)
            if callback is not None:
                callback(byte)
        while self._foreign:
            self._soon.append(self._foreign.pop(0))

    # Signals

    def add_signal(self, signo: int, callback: Callable[[int], None]) -> None:
        """Call ``callback(signo)`` from the loop when the signal came. Main thread only (ValueError elsewhere).

        Equal signals that come close together may be reported once, as the kernel itself does.
        """
        if not self._signals:
            self._old_wakeup = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._signals[signo] = callback
        old = signal.signal(signo, _ignore_signal)
        self._old_handlers.setdefault(signo, old)

    def remove_signal(self, signo: int) -> None:
        """Give the signal back to whoever handled it before. Harmless when it was not added."""
        if self._signals.pop(signo, None) is None:
            return
        old = self._old_handlers.pop(signo)
        # None: the handler was not installed from Python and cannot be given back; the default is next best.
        signal.signal(signo, signal.SIG_DFL if old is None else old)  # type: ignore[arg-type]
        if not self._signals:
            signal.set_wakeup_fd(self._old_wakeup)

    # Running

    def stop(self) -> None:
        """Make the running ``run_until`` return after this turn."""
        self._stopped = True

    def _timeout(self, timeout: float | None) -> float | None:
        if self._soon or self._always:
            return 0
        while self._timers and self._timers[0].callback is None:
            heappop(self._timers)
        if not self._timers:
            return timeout
        until = max(0.0, self._timers[0].when - monotonic())
        return until if timeout is None else min(until, timeout)

    def run_once(self, timeout: float | None = None) -> None:
        """Wait for something to happen, at most ``timeout`` seconds (None: for ever), and handle it.

        Each ready descriptor is served once, so one that is always ready starves nobody.
        """
        wait = self._timeout(timeout)
        ready = self._epoll.poll(wait, 64)
        self._turn += 1
        turn = self._turn
        for fd, events in ready:
            watch = self._watches.get(fd)
            # A number that was closed and taken again within this turn is not the one the event was for.
            if watch is not None and watch.born != turn:
                watch.callback(events)
        if self._always:
            for fd, watch in list(self._always.items()):
                if self._always.get(fd) is watch:
                    watch.callback(watch.events & (READ | WRITE))
        if self._timers:
            self._run_timers()
        batch, self._soon = self._soon, []
        while batch:
            callback = batch.pop(0)
            try:
                callback()
            except BaseException:
                self._soon = batch + self._soon  # the others still get their turn if the loop goes on
                raise

    def _run_timers(self) -> None:
        now = monotonic()
        while self._timers and self._timers[0].when <= now:
            callback = heappop(self._timers).callback
            if callback is not None:
                callback()

    def run_until(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        """Run until ``predicate()`` holds, ``stop`` is called, or ``timeout`` seconds have passed.

        Returns what the predicate says at the end.
        """
        self._stopped = False
        deadline = None if timeout is None else monotonic() + timeout
        while not predicate():
            left = None if deadline is None else deadline - monotonic()
            if self._stopped or (left is not None and left <= 0):
                return predicate()
            self.run_once(left)
        return True
