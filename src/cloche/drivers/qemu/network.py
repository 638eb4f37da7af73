"""The network card of a machine (layer 4, pure), whose front is a process of its own."""

from __future__ import annotations

from cloche.drivers.qemu.board import DeviceParts, reconnect_bind, reconnecting_socket
from cloche.drivers.qemu.jails import device_jail
from cloche.model.plan import Connection, Descriptor, Endpoint, EndpointKind, ProcessPlan
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.drivers.qemu.board import Board
    from cloche.model.facts import HostFacts
    from cloche.model.request import Network

_NAME = "net0"
_SOCKET_FD, _PEER_FD = 3, 4
#: QEMU would carry these out itself: the queue for commands, and what a guest believes in only if it has that.
_COMMANDS = (
    "ctrl_vq",
    "ctrl_rx",
    "ctrl_vlan",
    "ctrl_rx_extra",
    "ctrl_mac_addr",
    "ctrl_guest_offloads",
    "guest_announce",
)


def plan_network(board: Board, network: Network, facts: HostFacts) -> DeviceParts:
    """Return the parts of a network card.

    Raises:
        UsageError: There is no place for it.
        HostError: The filter for its front was not built.
    """
    # What the card carries at most is told, so that the guest cannot set more.
    words = ",".join(
        (f"mac={network.mac}", f"host_mtu={network.mtu}", *(f"{word}=off" for word in _COMMANDS))
    )
    if not board.microvm:
        # Nobody boots from it.
        words += ",romfile="
    return DeviceParts(
        argv=(
            *("-chardev", reconnecting_socket(_NAME, facts)),
            *("-netdev", f"vhost-user,id={_NAME}-front,chardev={_NAME}"),
            *("-device", f"{board.place('virtio-net')},netdev={_NAME}-front,{words}"),
        ),
        endpoints=(Endpoint(_NAME, EndpointKind.LISTEN),),
        processes=(_plan_process(network, facts),),
        root=(reconnect_bind(_NAME),),
        reconnects=True,
    )


def _plan_process(network: Network, facts: HostFacts) -> ProcessPlan:
    # It holds two sockets and knows no name of either; its network namespace is an empty one.
    words = (b"--fd", b"%d" % _SOCKET_FD, b"--mac", network.mac.encode(), b"--mtu", b"%d" % network.mtu)
    return ProcessPlan(
        name="net",
        argv=(b"cloche-net", *words),
        env=(),
        descriptors=(Descriptor(_NAME, "listen", _SOCKET_FD),),
        jail=device_jail(facts, "cloche-net"),
        executable=facts.tools.net,
        connections=(Connection(network.path, _PEER_FD, (b"--peer-fd", b"%d" % _PEER_FD)),),
        restarts=True,
    )
