"""The requests that save a running domain (layer 5)."""

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


class SnapshotOutline(Record):
    """Say in this directory which machine can go on from what you are going to save there."""

    directory: str

    def serve(
        self,
        launcher: Launcher,
        fds: list[int],
        answer: Callable[[Nothing], None],
        fail: Callable[[ClocheError], None],
    ) -> None:
        """Carry it out."""
        del fds
        from cloche.domain.preserve import write_outline

        write_outline(launcher, self.directory, lambda: answer(Nothing()), fail)
