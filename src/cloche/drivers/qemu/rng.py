"""Random numbers for a machine (layer 4, pure), from a process of their own."""

from __future__ import annotations

from cloche.drivers.qemu.board import DeviceParts
from cloche.drivers.qemu.jails import device_jail
from cloche.model.plan import Descriptor, Endpoint, EndpointKind, ProcessPlan
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.drivers.qemu.board import Board
    from cloche.model.facts import HostFacts

_NAME = "rng"
_SOCKET_FD, _VMM_FD = 3, 15


def plan_rng(board: Board, facts: HostFacts) -> DeviceParts:
    """Return the parts of a device that gives random numbers.

    The domain ends with its process: QEMU's vhost-user-rng forgets the device when the connection is gone, and does not
    wait for a socket that connects again (hw/virtio/vhost-user-base.c).
    """
    process = ProcessPlan(
        name=_NAME,
        argv=(b"cloche-rng", b"--fd", b"%d" % _SOCKET_FD),
        env=(),
        descriptors=(Descriptor(_NAME, "listen", _SOCKET_FD),),
        jail=device_jail(facts, "cloche-rng"),
        executable=facts.tools.rng,
    )
    return DeviceParts(
        argv=("-chardev", f"socket,id={_NAME},fd={_VMM_FD}", *rng_device(board, _NAME)),
        endpoints=(Endpoint(_NAME, EndpointKind.LINK),),
        processes=(process,),
        descriptors=(Descriptor(_NAME, "connect", _VMM_FD),),
    )


def rng_device(board: Board, chardev: str) -> tuple[str, str]:
    """Return QEMU's words for random numbers from behind a socket."""
    return "-device", f"{board.place('vhost-user-rng', suffix='')},chardev={chardev}"
