"""Reading ``--net`` (layer 2, pure; the host's view comes from ``host.networks``)."""

from __future__ import annotations

from cloche.errors import UsageError
from cloche.model.guest import Interface, WriteFile
from cloche.model.request import NetworkKind
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.model.guest import Step
    from cloche.model.request import Network

_FORM = "Write none, user, socket:PATH, or one of them with an address: user,mac=02:00:00:00:00:01."
_DIGITS = frozenset("0123456789abcdef")
#: Of a guest with a network of its own behind a process of ours: its card, and where that process is found.
CARD = b"eth0"
GUEST, PREFIX, GATEWAY, NAMES = "10.0.2.15", 24, "10.0.2.2", "10.0.2.3"
#: The same by IPv6: the network is that of this address, of which a guest makes its own, and the router is of the link
#: alone. Programs prefer IPv4 where a name has both: the network is a private one (RFC 4193, RFC 6724).
GUEST6, GATEWAY6 = "fd63:6c6f:6368:65::f", "fe80::2"


def build_network_steps(network: Network | None) -> tuple[Step, ...]:
    """Return the steps that give a guest's card its address, and programs somebody to ask for names.

    What is said through a socket is the guest's own matter.
    """
    if network is None or network.kind != NetworkKind.USER:
        return ()
    return (
        Interface(CARD, _number(GUEST), PREFIX, _number(GATEWAY)),
        WriteFile(b"/etc/resolv.conf", 0o644, 0, 0, f"nameserver {NAMES}\n".encode()),
    )


def _number(address: str) -> int:
    return int.from_bytes(bytes(map(int, address.split("."))))


def parse_network(word: str) -> tuple[str, str, str | None] | None:
    """Read ``none``, ``user[,mac=MAC]`` or ``socket:PATH[,mac=MAC]``; None for no network.

    Returns:
        The kind (``NetworkKind``), the path (empty where there is none), the card's address if one was given.

    Raises:
        UsageError: It is malformed.
    """
    if "\0" in word:
        raise UsageError(f"--net {word!r} holds a NUL byte, which no name can")
    if word == "none":
        return None
    mac = None
    head, separator, tail = word.rpartition(",")
    if separator and tail.startswith("mac="):
        mac = tail[4:].lower()
    else:
        head = word
    kind, colon, path = head.partition(":")
    if kind not in (NetworkKind.SOCKET, NetworkKind.USER) or (colon and kind == NetworkKind.USER):
        raise UsageError(f"--net {word!r}: there is no network {kind!r}", hint=_FORM)
    if mac is not None and not is_card_address(mac):
        raise UsageError(
            f"--net {word!r}: {tail[4:]!r} cannot be the address of a network card",
            hint="It has six numbers of two hexadecimal digits, the first one even: 02:00:00:00:00:01.",
        )
    if kind == NetworkKind.SOCKET and not path:
        raise UsageError(f"--net {word!r} names no socket", hint=_FORM)
    return kind, path, mac


def is_card_address(text: str) -> bool:
    """Whether this is the address of one card: six numbers, not all zero and no group's."""
    parts = text.split(":")
    if len(parts) != 6 or not all(len(part) == 2 and set(part) <= _DIGITS for part in parts):
        return False
    return int(parts[0], 16) % 2 == 0 and text != "00:00:00:00:00:00"
