"""The requests that give a running domain another device (layer 5)."""

from __future__ import annotations

from cloche.domain.control.fields import Nothing
from cloche.model.request import Disk, Network
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from cloche.domain.control.fields import U32, U64
    from cloche.domain.launcher import Launcher
    from cloche.errors import ClocheError

    Fail = Callable[[ClocheError], None]


class DiskAdd(Record):
    """Give the guest this disk."""

    tag: str
    path: str
    format: str
    writable: bool
    empty: bool
    is_bounded: bool
    most_bytes: U64

    @classmethod
    def of(cls, disk: Disk) -> Self:
        """Return the request for a disk."""
        bound = disk.most_bytes
        return cls(disk.tag, disk.path, disk.format, disk.writable, disk.empty, bound is not None, bound or 0)

    def serve(
        self, launcher: Launcher, fds: list[int], answer: Callable[[Nothing], None], fail: Fail
    ) -> None:
        """Carry it out."""
        del fds
        from cloche.domain.adding import add_disk

        bound = self.most_bytes if self.is_bounded else None
        # It comes behind what the machine has and not into a drive, so nobody asks whether it is whole.
        disk = Disk(self.tag, self.path, self.format, self.writable, bound, empty=self.empty)
        add_disk(launcher, disk, lambda: answer(Nothing()), fail)


class NetAdd(Record):
    """Give the guest this network card."""

    kind: str
    path: str
    mac: str
    mtu: U32

    @classmethod
    def of(cls, network: Network) -> Self:
        """Return the request for a network card."""
        return cls(network.kind, network.path, network.mac, network.mtu)

    def serve(
        self, launcher: Launcher, fds: list[int], answer: Callable[[Nothing], None], fail: Fail
    ) -> None:
        """Carry it out."""
        del fds
        from cloche.domain.adding import add_network

        network = Network(self.path, self.mac, self.mtu, self.kind)
        add_network(launcher, network, lambda: answer(Nothing()), fail)
