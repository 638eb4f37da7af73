"""The request that shares a directory with a running domain (layer 5)."""

from __future__ import annotations

from cloche.domain.control.fields import Nothing
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.domain.launcher import Launcher
    from cloche.errors import ClocheError


class ShareAdd(Record):
    """Show the directory behind the one descriptor at ``target`` in the guest."""

    target: str
    writable: bool

    def serve(
        self,
        launcher: Launcher,
        fds: list[int],
        answer: Callable[[Nothing], None],
        fail: Callable[[ClocheError], None],
    ) -> None:
        """Carry it out."""
        launcher.sharing.add(fds[0], self.target, self.writable, lambda: answer(Nothing()), fail)
