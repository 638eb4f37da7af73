"""The request that gives a running domain another disk (layer 5)."""

from __future__ import annotations

from cloche.domain.control.fields import Nothing
from cloche.model.request import Disk
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from cloche.domain.control.fields import U64
    from cloche.domain.launcher import Launcher
    from cloche.errors import ClocheError


class DiskAdd(Record):
    """Give the guest this disk."""

    tag: str
    path: str
    format: str
    writable: bool
    is_bounded: bool
    most_bytes: U64

    @classmethod
    def of(cls, disk: Disk) -> Self:
        """Return the request for a disk."""
        bound = disk.most_bytes
        return cls(disk.tag, disk.path, disk.format, disk.writable, bound is not None, bound or 0)

    def serve(
        self,
        launcher: Launcher,
        fds: list[int],
        answer: Callable[[Nothing], None],
        fail: Callable[[ClocheError], None],
    ) -> None:
        """Carry it out."""
        del fds
        from cloche.domain.adding import add_disk

        bound = self.most_bytes if self.is_bounded else None
        disk = Disk(self.tag, self.path, self.format, self.writable, bound)
        add_disk(launcher, disk, lambda: answer(Nothing()), fail)
