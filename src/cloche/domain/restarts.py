"""Which processes are started anew when they die, and how often (layer 5)."""

from __future__ import annotations

from time import monotonic

#: A process may die so often within so many seconds; after that it is not chance.
MOST, WITHIN_S = 5, 60.0
TOO_OFTEN = f"the last of {MOST + 1} times within {WITHIN_S:g} seconds"


class Restarts:
    """The deaths of a domain's processes."""

    def __init__(self) -> None:
        self._deaths: dict[int, list[float]] = {}

    def may_restart(self, ident: int) -> bool:
        """Note that a process has died; returns whether it is worth another start."""
        now = monotonic()
        recent = [then for then in self._deaths.get(ident, ()) if now - then < WITHIN_S]
        self._deaths[ident] = [*recent, now]
        return len(recent) < MOST
