"""The request that makes the disk of a running domain's profile larger (layer 5)."""

from __future__ import annotations

from cloche.domain.control.fields import Nothing
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.domain.control.fields import U64
    from cloche.domain.launcher import Launcher
    from cloche.errors import ClocheError


class ProfileGrow(Record):
    """Let the disk of your profile have so many bytes."""

    size_bytes: U64

    def serve(
        self,
        launcher: Launcher,
        fds: list[int],
        answer: Callable[[Nothing], None],
        fail: Callable[[ClocheError], None],
    ) -> None:
        """Carry it out."""
        del fds
        from cloche.domain.growing import grow

        def work(done: Callable[[], None], _: Callable[[ClocheError], None]) -> None:
            grow(launcher.machine, self.size_bytes)
            done()

        launcher.in_turn(work, lambda: answer(Nothing()), fail)
