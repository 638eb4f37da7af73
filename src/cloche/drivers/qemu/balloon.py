"""The device by which a guest gives memory back (layer 4, pure), in the VMM: it has nothing that faces the host.

Only its reports of free pages are used (virtio 1.2, 5.5.6.7): the guest names what it has not used for some seconds,
and QEMU punches a hole into the file of the guest's memory. No balloon is ever blown up: nothing is taken from a guest.
"""

from __future__ import annotations

from cloche.drivers.qemu.board import DeviceParts
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.drivers.qemu.board import Board


def plan_balloon(board: Board) -> DeviceParts:
    """Return the device's part of a machine."""
    return DeviceParts(argv=("-device", f"{board.place('virtio-balloon')},free-page-reporting=on"))
