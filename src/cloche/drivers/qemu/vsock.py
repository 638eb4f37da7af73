"""Sockets between a machine and programs of the host (layer 4, pure), moved by a process of their own."""

from __future__ import annotations

from cloche.drivers.qemu.board import DeviceParts
from cloche.drivers.qemu.jails import device_jail
from cloche.model.plan import Descriptor, Endpoint, EndpointKind, ProcessPlan, VsockPlan
from cloche.plan.sockets import check_sockets
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.drivers.qemu.board import Board
    from cloche.model.facts import HostFacts
    from cloche.model.request import RunRequest

_NAME, _DOOR, _ASKS = "vsock", "vsock-door", "vsock-asks"
_SOCKET_FD, _DOOR_FD, _ASKS_FD, _VMM_FD = 3, 4, 5, 16
#: A guest's address. It is known to nobody but the guest: each has a process of its own, so all have the same.
CID = 3


def plan_vsock(board: Board, request: RunRequest, facts: HostFacts) -> DeviceParts:
    """Return the parts of a device for sockets.

    The domain ends with its process: QEMU's vhost-user-vsock does not wait for a socket that connects again
    (hw/virtio/vhost-user-vsock.c).

    Raises:
        UsageError: There is no place for it, or the guest could make sockets of its own out of what is shared.
    """
    check_sockets(request.vsock, request.shares)
    words = (
        "--fd",
        str(_SOCKET_FD),
        "--listen-fd",
        str(_DOOR_FD),
        "--ask-fd",
        str(_ASKS_FD),
        "--cid",
        str(CID),
    )
    process = ProcessPlan(
        name=_NAME,
        argv=(b"cloche-vsock", *(word.encode() for word in words)),
        env=(),
        descriptors=(
            Descriptor(_NAME, "listen", _SOCKET_FD),
            Descriptor(_DOOR, "listen", _DOOR_FD),
            Descriptor(_ASKS, "there", _ASKS_FD),
        ),
        jail=device_jail(facts, "cloche-vsock"),
        executable=facts.tools.vsock,
    )
    return DeviceParts(
        argv=(
            *("-chardev", f"socket,id={_NAME},fd={_VMM_FD}"),
            *("-device", f"{board.place('vhost-user-vsock')},chardev={_NAME}"),
        ),
        endpoints=(
            Endpoint(_NAME, EndpointKind.LINK),
            Endpoint(_DOOR, EndpointKind.DOOR, request.vsock),
            Endpoint(_ASKS, EndpointKind.PAIR),
        ),
        processes=(process,),
        descriptors=(Descriptor(_NAME, "connect", _VMM_FD),),
    )


def sockets_of(request: RunRequest) -> VsockPlan | None:
    """Return how a guest reaches sockets of the host; None when it has none."""
    return VsockPlan(request.vsock, _ASKS) if request.vsock else None
