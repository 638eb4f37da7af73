"""Processes that are connected with each other (layer 5): they live and die together.

A stream whose writer has died may end in the middle of what was being said, so none of two goes on with the other's
successor. Of each pair::

    RUNNING --one ends: the other is ended--> ENDING --that has ended, too--> both are started anew, RUNNING
"""

from __future__ import annotations

from cloche.domain.peers import PEER_GONE
from cloche.lean import signal
from cloche.model.plan import EndpointKind
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.host.warden import Exited
    from cloche.model.plan import LaunchPlan

#: How a process ends for the other one's sake.
_SEQUELS = (0, PEER_GONE)


class Couple:
    """One pair.

    Attributes:
        endpoint: What connects them.
        idents: Their numbers.
    """

    def __init__(self, endpoint: str, idents: tuple[int, ...], end: Callable[[int, int], None]) -> None:
        self.endpoint = endpoint
        self.idents = idents
        self._end = end
        self._ended: list[Exited] = []

    def note(self, event: Exited) -> Exited | None:
        """Note that one of them has ended; when both have, returns the end that was the cause of the other."""
        self._ended.append(event)
        if len(self._ended) < len(self.idents):
            for ident in self.idents:
                if ident != event.id:
                    self._end(ident, signal.SIGKILL)
            return None
        first, second = self._ended
        self._ended = []
        # The word of the one's end may come after that of what it has brought about.
        return second if first.status in _SEQUELS else first


def find_couples(plan: LaunchPlan, end: Callable[[int, int], None]) -> dict[int, Couple]:
    """Return the pairs of a plan, by the numbers of their processes. ``end`` ends a process, with a signal."""
    found: dict[int, Couple] = {}
    for endpoint in plan.endpoints:
        if endpoint.kind == EndpointKind.JOIN:
            idents = tuple(
                ident
                for ident, process in enumerate(plan.processes)
                if any(descriptor.endpoint == endpoint.name for descriptor in process.descriptors)
            )
            found |= dict.fromkeys(idents, Couple(endpoint.name, idents, end))
    return found
