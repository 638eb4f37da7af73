"""Two processes on one stream: which one's end was the cause of the other's, whatever is heard first."""

from __future__ import annotations

import signal

import pytest

from cloche.domain.couples import Couple
from cloche.domain.peers import PEER_GONE
from cloche.host.warden import Exited

FRONT, PASST = 2, 3
KILLED = signal.SIGKILL


@pytest.mark.parametrize(
    "first, second, cause",
    [
        # passt was killed, and the front has seen its end; heard of in either order.
        (Exited(PASST, -1, KILLED), Exited(FRONT, PEER_GONE), PASST),
        (Exited(FRONT, PEER_GONE), Exited(PASST, -1, KILLED), PASST),
        # The front was killed, and passt has seen it, or was ended for it.
        (Exited(FRONT, -1, KILLED), Exited(PASST, 0), FRONT),
        (Exited(PASST, 0), Exited(FRONT, -1, KILLED), FRONT),
        (Exited(FRONT, -1, KILLED), Exited(PASST, -1, KILLED), FRONT),
        # passt cannot go on, and says so.
        (Exited(PASST, 1), Exited(FRONT, -1, KILLED), PASST),
        (Exited(FRONT, PEER_GONE), Exited(PASST, 1), PASST),
    ],
)
def test_the_cause_is_found(first: Exited, second: Exited, cause: int) -> None:
    """The first end ends the other process; both together tell the cause, and then the pair begins anew."""
    ended: list[tuple[int, int]] = []
    couple = Couple("pair", (FRONT, PASST), lambda ident, signo: ended.append((ident, signo)))
    for _ in range(2):
        assert couple.note(first) is None
        assert ended == [(second.id, KILLED)]
        found = couple.note(second)
        assert found is not None
        assert found.id == cause
        assert ended == [(second.id, KILLED)]
        ended.clear()
