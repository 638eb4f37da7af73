"""The request that saves a running domain (layer 5)."""

from __future__ import annotations

from cloche.domain.control.fields import Nothing
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.domain.launcher import Launcher
    from cloche.errors import ClocheError


class SnapshotSave(Record):
    """Save yourself into this directory, and give it its name if it is to have one."""

    directory: str
    title: str
    stop: bool

    def serve(
        self,
        launcher: Launcher,
        fds: list[int],
        answer: Callable[[Nothing], None],
        fail: Callable[[ClocheError], None],
    ) -> None:
        """Carry it out."""
        del fds
        from cloche.domain.preserve import preserve

        preserve(
            launcher, self.directory, self.title, stop=self.stop, done=lambda: answer(Nothing()), fail=fail
        )
