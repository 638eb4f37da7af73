"""The request that lists what is shared with a running domain (layer 5)."""

from __future__ import annotations

from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.domain.launcher import Launcher
    from cloche.errors import ClocheError


class ShareList(Record):
    """What is shared?"""

    def serve(
        self,
        launcher: Launcher,
        fds: list[int],
        answer: Callable[[Shares], None],
        fail: Callable[[ClocheError], None],
    ) -> None:
        """Carry it out."""
        del fds, fail
        shares = (
            Listed(one.share.target, one.share.source, one.share.writable, one.added)
            for one in launcher.sharing.shares
        )
        answer(Shares(tuple(shares)))


class Listed(Record):
    """One shared directory.

    Attributes:
        target: Where it is in the guest.
        source: Where it was on the host when it was shared.
        writable: Whether the guest may change it.
        added: Whether it was added while the domain ran.
    """

    target: str
    source: str
    writable: bool
    added: bool


class Shares(Record):
    """Every shared directory, in the order in which they were shared."""

    shares: tuple[Listed, ...]
