"""Lets a guest's agent talk, but not without end (layer 3)."""

from __future__ import annotations

from cloche.host.text import escape_untrusted
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.guest.messages import Log

#: LOG messages let through: so many at once, so many per second in the long run.
_BURST = 200
_RATE = 50
#: Characters of one message that are shown.
_LENGTH = 1000
_WARNING = 2


class AgentLog:
    """Passes LOG messages on, escaped; what is too much is counted and dropped.

    Args:
        now: The clock, in seconds.
    """

    def __init__(self, now: float) -> None:
        self._tokens = float(_BURST)
        self._time = now
        self._dropped = 0

    def take(self, message: Log, now: float, sink: Callable[[int, str], None] | None) -> None:
        """Hand the message to ``sink`` as level and text, unless there were too many."""
        self._tokens = min(_BURST, self._tokens + (now - self._time) * _RATE)
        self._time = now
        if self._tokens < 1:
            self._dropped += 1
            return
        self._tokens -= 1
        if sink is None:
            return
        if self._dropped:
            sink(_WARNING, f"{self._dropped} messages of the agent were dropped")
            self._dropped = 0
        sink(message.level, escape_untrusted(message.text, _LENGTH))
