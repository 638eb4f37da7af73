"""The request that takes a shared directory away from a running domain (layer 5)."""

from __future__ import annotations

from cloche.domain.control.fields import Nothing
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.domain.launcher import Launcher
    from cloche.errors import ClocheError


class ShareRemove(Record):
    """Take away what is shared at ``place`` in the guest, or from there on the host.

    ``forced``: whether or not a program uses it, and whatever the guest says.
    """

    place: str
    forced: bool

    def serve(
        self,
        launcher: Launcher,
        fds: list[int],
        answer: Callable[[Nothing], None],
        fail: Callable[[ClocheError], None],
    ) -> None:
        """Carry it out."""
        del fds
        launcher.sharing.remove(self.place, self.forced, lambda: answer(Nothing()), fail)
