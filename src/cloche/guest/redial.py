"""When a cut connection to the agent is made again (layer 3)."""

from __future__ import annotations

from cloche import log
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.host.reactor import Reactor, Timer

#: Connection attempts that fail before the agent counts as lost, and the first pause between them in seconds (doubled
#: each time): a little over a second in all.
_ATTEMPTS = 8
_FIRST_PAUSE = 0.01
#: How long a connection made again may stay without an answer, in seconds (doubled each time, up to the longest).
_FIRST_PATIENCE = 0.25
_LONGEST_PATIENCE = 16.0


class Redial:
    """Decides when to connect again, and when to give up.

    A new connection that nobody answers is dropped for the next one. When QEMU finds out by writing that the other end
    of its socket is gone, its virtio-console first handles the end of the connection and only then marks the port as
    waiting for room. Nothing takes that mark away but the end of the next connection, and until then nothing of the
    guest's reaches the host. (Seen with QEMU 10.0; the first connection of all waits for the guest to boot instead.)

    Args:
        reactor: The loop with the clock.
        dial: Connects; called from the loop.
        drop: Lets go of the connection nobody answers.
    """

    def __init__(self, reactor: Reactor, dial: Callable[[], None], drop: Callable[[], None]) -> None:
        self._reactor = reactor
        self._dial = dial
        self._drop = drop
        self._attempts = 0
        self._was_cut = False
        self._patience = _FIRST_PATIENCE
        self._pause: Timer | None = None
        self._answer: Timer | None = None

    def connected(self) -> None:
        """A connection is there, and the greeting on its way."""
        if self._was_cut:
            self._answer = self._reactor.call_later(self._patience, self._unanswered)

    def answered(self) -> None:
        """The agent has attached."""
        self.cancel()
        self._attempts = 0
        self._patience = _FIRST_PATIENCE

    def again(self, *, at_once: bool) -> bool:
        """Connect again, now or after a pause; False when that was tried too often."""
        self.cancel()
        self._was_cut = True
        if self._attempts >= _ATTEMPTS:
            return False
        self._attempts += 1
        pause = 0.0 if at_once else _FIRST_PAUSE * (1 << self._attempts) / 4
        self._pause = self._reactor.call_later(pause, self._dial)
        return True

    def _unanswered(self) -> None:
        self._answer = None
        log.debug("agent: no answer over the new connection, connecting again")
        self._patience = min(2 * self._patience, _LONGEST_PATIENCE)
        self._drop()
        self._dial()

    def cancel(self) -> None:
        """Do nothing more by itself."""
        for timer in (self._pause, self._answer):
            if timer is not None:
                timer.cancel()
        self._pause = self._answer = None
