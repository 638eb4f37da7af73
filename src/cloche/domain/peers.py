"""Whom a domain's processes are connected with on the host (layer 5): connected anew for each start.

A stream whose reader has died may have been left in the middle of a frame, so a process that is started again gets a
connection of its own. While nobody listens it runs without one; when somebody does again, it is ended and started anew.
"""

from __future__ import annotations

import os

from cloche import log
from cloche.domain.endpoints import connect_to
from cloche.errors import NetworkError
from cloche.lean import signal
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.host.reactor import Reactor, Timer
    from cloche.host.warden import Exited
    from cloche.lean import socket
    from cloche.model.plan import ProcessPlan

#: Exit status of a process whose peer has gone (crates/device).
PEER_GONE = 5
#: How long it is until a peer is looked for again, in seconds.
_AGAIN_S = 0.5


class Peers:
    """The connections of one domain's processes, by the numbers of these.

    Args:
        reactor: Whose timers are used.
        end: Ends a process, by its number and with a signal.
    """

    def __init__(self, reactor: Reactor, end: Callable[[int, int], None]) -> None:
        self._reactor = reactor
        self._end = end
        self._made: dict[int, socket.socket] = {}
        self._timers: dict[int, Timer] = {}
        self._last: dict[int, float] = {}

    def first(self, ident: int, process: ProcessPlan) -> None:
        """Connect to the peer of a process that was not started yet.

        Raises:
            NetworkError: Nobody listens there, or the caller may not connect.
        """
        path = process.connections[0].path
        try:
            self._made[ident] = connect_to(path, wait=False)
        except OSError as error:
            raise NetworkError(
                f"cannot connect the guest to {path}: {os.strerror(error.errno or 0)}",
                hint="Look whether what is to listen there runs, and has time for one connection more.",
            ) from None

    def take(self, ident: int, process: ProcessPlan) -> socket.socket | None:
        """Return a fresh connection for a start of a process, its to close; None when nobody listens now."""
        made = self._made.pop(ident, None)
        if made is None:
            made = self._try(ident, process)
        self._last[ident] = self._reactor.time()
        if ident in self._timers:
            self._timers.pop(ident).cancel()
        if made is None:
            self._look_later(ident, process)
        return made

    def explain(self, ident: int, event: Exited, process: ProcessPlan) -> bool:
        """Tell whether a process ended for its connection's sake: nothing is wrong with it then."""
        if ident in self._made:
            log.notice(f"{process.name} is connected again")
            return True
        if event.status != PEER_GONE:
            return False
        log.notice(
            f"{process.connections[0].path} has hung up: "
            "what the guest sends is dropped until somebody listens there again"
        )
        return True

    def close(self) -> None:
        """Close what nobody has taken, and look for nobody any more."""
        for timer in self._timers.values():
            timer.cancel()
        while self._made:
            self._made.popitem()[1].close()

    def _try(self, ident: int, process: ProcessPlan) -> socket.socket | None:
        # One who hangs up at once is not connected to in a circle.
        if self._reactor.time() - self._last.get(ident, -_AGAIN_S) < _AGAIN_S:
            return None
        try:
            return connect_to(process.connections[0].path, wait=False)
        except OSError:
            return None

    def _look_later(self, ident: int, process: ProcessPlan) -> None:
        self._timers[ident] = self._reactor.call_later(_AGAIN_S, lambda: self._look(ident, process))

    def _look(self, ident: int, process: ProcessPlan) -> None:
        self._last.pop(ident, None)
        made = self._try(ident, process)
        if made is None:
            self._look_later(ident, process)
            return
        self._made[ident] = made
        self._end(ident, signal.SIGTERM)
