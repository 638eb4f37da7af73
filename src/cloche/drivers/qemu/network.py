"""The network card of a machine (layer 4, pure), whose front is a process of its own, and what may stand behind it."""

from __future__ import annotations

from cloche.drivers.qemu.board import DeviceParts, reconnect_bind, reconnecting_socket
from cloche.drivers.qemu.jails import READ_ONLY, device_jail, library_root
from cloche.errors import HostError
from cloche.model.jail import Bind, BindFlag, Dir, Namespace, Proc
from cloche.model.plan import Connection, Descriptor, Endpoint, EndpointKind, ProcessPlan
from cloche.model.request import NetworkKind
from cloche.plan import networks
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.drivers.qemu.board import Board
    from cloche.model.facts import HostFacts
    from cloche.model.jail import RootOp
    from cloche.model.request import Network

_NAME = "net0"
_SOCKET_FD, _PEER_FD, _PASST_FD = 3, 4, 3
#: Between the front and passt.
_JOIN = Endpoint("net0-outside", EndpointKind.JOIN)
#: QEMU would carry these out itself: the queue for commands, and what a guest believes in only if it has that.
COMMANDS = (
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
        HostError: A filter was not built, or there is no passt.
    """
    is_user = network.kind == NetworkKind.USER
    # What the card carries at most is told, so that the guest cannot set more.
    words = ",".join((f"mac={network.mac}", f"host_mtu={network.mtu}", *(f"{word}=off" for word in COMMANDS)))
    if not board.microvm:
        # Nobody boots from it.
        words += ",romfile="
    return DeviceParts(
        argv=(
            *("-chardev", reconnecting_socket(_NAME, facts)),
            *("-netdev", f"vhost-user,id={_NAME}-front,chardev={_NAME}"),
            *("-device", f"{board.place('virtio-net')},netdev={_NAME}-front,{words}"),
        ),
        endpoints=(Endpoint(_NAME, EndpointKind.LISTEN), *((_JOIN,) if is_user else ())),
        processes=(_plan_front(network, facts), *((_plan_passt(network, facts),) if is_user else ())),
        root=(reconnect_bind(_NAME),),
        reconnects=True,
    )


def _plan_front(network: Network, facts: HostFacts) -> ProcessPlan:
    # It holds two sockets and knows no name of either; its network namespace is an empty one.
    words = (b"--fd", b"%d" % _SOCKET_FD, b"--mac", network.mac.encode(), b"--mtu", b"%d" % network.mtu)
    front = ProcessPlan(
        name="net",
        argv=(b"cloche-net", *words),
        env=(),
        descriptors=(Descriptor(_NAME, "listen", _SOCKET_FD),),
        jail=device_jail(facts, "cloche-net"),
        executable=facts.tools.net,
        restarts=True,
    )
    peer = (b"--peer-fd", b"%d" % _PEER_FD)
    if network.kind == NetworkKind.SOCKET:
        return front._replace(connections=(Connection(network.path, _PEER_FD, peer),))
    # passt connects to whatever address it is told, the host's loopback too: what is for that ends in the front.
    return front._replace(
        argv=(*front.argv, *peer, b"--outward"),
        descriptors=(*front.descriptors, Descriptor(_JOIN.name, "one", _PEER_FD)),
    )


def _plan_passt(network: Network, facts: HostFacts) -> ProcessPlan:
    """Plan the one process that stands in the host's network."""
    if not facts.tools.passt:
        raise HostError("--net user needs passt, which is not installed", hint="Install the package passt.")
    words = (
        *("--foreground", "--quiet", "--fd", str(_PASST_FD)),
        *("--address", networks.GUEST, "--netmask", str(networks.PREFIX), "--gateway", networks.GATEWAY),
        # Asked for names it asks whom the host asks.
        *("--dns-forward", networks.NAMES, "--mtu", str(network.mtu)),
        # Nothing leads to the host: neither the gateway's address, nor a port of the host's to the guest.
        *("--no-map-gw", "--tcp-ports", "none", "--udp-ports", "none", "--no-dhcp", "--no-dhcpv6"),
        # By IPv6, where the host has it, the guest's kernel sets itself up by what its router says; of the host's own
        # addresses and resolvers it is told nothing.
        *("--address", networks.GUEST6, "--gateway", networks.GATEWAY6, "--no-dhcp-dns", "--no-dhcp-search"),
    )
    root: tuple[RootOp, ...] = (
        *library_root(facts),
        Bind(b"/etc/resolv.conf", b"/etc/resolv.conf", READ_ONLY | BindFlag.OPTIONAL),
        Proc(b"/proc"),
        # Where it mounts the empty root of its own.
        Dir(b"/tmp", 0o700),
    )
    jail = device_jail(facts, "passt", root)
    return ProcessPlan(
        name="passt",
        argv=(b"passt", *(word.encode() for word in words)),
        env=(),
        descriptors=(Descriptor(_JOIN.name, "other", _PASST_FD),),
        executable=facts.tools.passt,
        jail=jail._replace(namespaces=jail.namespaces & ~Namespace.NET),
        restarts=True,
    )
