"""How much goes through a guest's network card: packets and bytes a second, in either direction.

A workload for any arrangement of the devices: the guest needs a card called eth0, and the host a socket where frames
come behind their length (``--net socket:PATH``; for QEMU's own card ``-netdev stream,addr.type=unix,addr.path=PATH``).
Packets are of no protocol, so that the rate is the card's.
"""

from __future__ import annotations

import selectors
import struct
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import socket

#: The kind of the packets (IEEE 802, for experiments) and how long each is, in bytes.
ETHERTYPE, SMALL, LARGE = 0x88B5, 64, 1514

#: What the guest runs as root, with a MODE (send or receive), a LENGTH and a COUNT of packets: sends them as fast as it
#: can, or counts those that come until a second goes by without one. It prints how many that were.
GUEST = f"""
import os, socket, sys
mode, length, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.system("ip link set eth0 up")
card = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, {ETHERTYPE})
card.bind(("eth0", {ETHERTYPE}))
own = card.getsockname()[4]
frame = (b"\\xff" * 6 + own + ({ETHERTYPE}).to_bytes(2, "big")).ljust(length, b"x")
print("ready", own.hex(), flush=True)
sys.stdin.readline()
done = 0
if mode == "send":
    while done < count:
        try:
            done += card.send(frame) > 0
        except OSError:
            pass  # its queue is full
else:
    card.settimeout(1)
    try:
        while done < count:
            card.recv(2048)
            done += 1
    except TimeoutError:
        pass
print(done, flush=True)
"""


class Rate(NamedTuple):
    """What a run came to.

    Attributes:
        packets: How many came to the host, or were given to the card.
        seconds: From the first to the last of them.
        length: Bytes of each.
    """

    packets: int
    seconds: float
    length: int

    @property
    def per_second(self) -> float:
        """Packets a second."""
        return self.packets / self.seconds

    @property
    def mib_per_second(self) -> float:
        """MiB a second, with the packets' addresses."""
        return self.packets * self.length / self.seconds / (1 << 20)


def count_sent(peer: socket.socket, length: int, packets: int, patience_s: float = 60.0) -> Rate:
    """Count what a guest sends, as the peer of its card.

    Args:
        peer: The stream of frames.
        length: Bytes of each packet.
        packets: How many are awaited.
        patience_s: How long nothing may come.

    Raises:
        TimeoutError: Nothing came for so long.
    """
    peer.settimeout(patience_s)
    stream, found = bytearray(), 0
    begun = ended = 0.0
    while found < packets:
        data = peer.recv(1 << 20)
        if not data:
            break
        stream += data
        at = 0
        while len(stream) - at >= 4:
            (size,) = struct.unpack_from(">I", stream, at)
            if len(stream) - at < 4 + size:
                break
            if size == length and bytes(stream[at + 16 : at + 18]) == ETHERTYPE.to_bytes(2, "big"):
                ended = monotonic()
                begun = begun or ended
                found += 1
            at += 4 + size
        del stream[:at]
    return Rate(found, max(ended - begun, 1e-9), length)


def flood(peer: socket.socket, to: bytes, length: int, packets: int) -> Rate:
    """Send packets to a guest as fast as its card takes them; what it sends meanwhile is read and forgotten."""
    frame = (to + b"\x02" + bytes(5) + ETHERTYPE.to_bytes(2, "big")).ljust(length, b"x")
    batch = (struct.pack(">I", length) + frame) * 32
    peer.setblocking(False)
    left = memoryview(batch)
    sent, begun = 0, monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(peer, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while sent < packets:
            for _, events in selector.select():
                if events & selectors.EVENT_READ and not peer.recv(1 << 16):
                    return Rate(sent, monotonic() - begun, length)
                if events & selectors.EVENT_WRITE:
                    left = left[peer.send(left) :]
            if not left:
                sent += 32
                left = memoryview(batch)
    return Rate(sent, monotonic() - begun, length)
