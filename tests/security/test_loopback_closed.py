"""A guest that is root and speaks to its card directly, and wants to reach what listens on the host's loopback device.

passt connects to whatever address a frame is for: to its own host by 127.0.0.0/8 and by 0.0.0.0 whatever its options
say, and by the gateway's address unless it is told not to. The front holds the former back, an option the latter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.outside import ADDRESS, ADDRESS6, ECHO_PORT, LINK6, SECRET_PORT, outside
from support.runs import Runner

if TYPE_CHECKING:
    from pathlib import Path

    from support.users import OrdinaryUser

LOOPBACK = ("127.0.0.1", "127.1.2.3", "0.0.0.0")
GATEWAY = "10.0.2.2"
#: Says from which of these addresses somebody has answered the first segment of a connection; the last is to answer.
ATTACK = f"""
import socket, struct
OWN = "10.0.2.15"
TARGETS = [(address, {SECRET_PORT}) for address in {(*LOOPBACK, GATEWAY)!r}] + [("{ADDRESS}", {ECHO_PORT})] * 2
card = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x800)
card.bind(("eth0", 0x800))
mac = open("/sys/class/net/eth0/address").read().strip().replace(":", "")
def checksum(data):
    total = sum(struct.unpack(f">{{len(data) // 2}}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack(">H", ~total & 0xFFFF)
def first(address, port, source):
    ends = socket.inet_aton(OWN) + socket.inet_aton(address)
    tcp = struct.pack(">HHIIBBHHH", source, port, 1000, 0, 0x50, 2, 65535, 0, 0)
    tcp = tcp[:16] + checksum(ends + struct.pack(">HH", 6, len(tcp)) + tcp) + tcp[18:]
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 1, 0x4000, 64, 6, 0) + ends
    return bytes.fromhex("525400000001" + mac) + b"\\x08\\0" + ip[:10] + checksum(ip) + ip[12:] + tcp
reached = set()
# One after the other: when the last has answered, those before have had their time.
for number, (address, port) in enumerate(TARGETS):
    card.send(first(address, port, 5000 + number))
while 5000 + len(TARGETS) - 1 not in reached:
    frame = card.recv(2000)
    source, port, flags = frame[26:30], struct.unpack(">H", frame[36:38])[0], frame[47]
    if frame[23] == 6 and flags & 0x12 == 0x12:
        reached.add(port)
print(*(address for number, (address, _) in enumerate(TARGETS) if 5000 + number in reached))
"""


#: The same by IPv6. Every address of IPv4 is one of these, too: this passt reaches none by them.
LOOPBACK6, MAPPED = "::1", "::ffff:127.0.0.1"
GATEWAY6 = "fe80::2"
ATTACK6 = f"""
import socket, struct
OWN = "fd63:6c6f:6368:65::15"
SECRETS = [(address, {SECRET_PORT}) for address in {(LOOPBACK6, MAPPED, LINK6, GATEWAY6)!r}]
TARGETS = SECRETS + [("{ADDRESS6}", {ECHO_PORT})] * 2
card = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x86DD)
card.bind(("eth0", 0x86DD))
mac = open("/sys/class/net/eth0/address").read().strip().replace(":", "")
def checksum(data):
    total = sum(struct.unpack(f">{{len(data) // 2}}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack(">H", ~total & 0xFFFF)
def first(address, port, source):
    ends = socket.inet_pton(socket.AF_INET6, OWN) + socket.inet_pton(socket.AF_INET6, address)
    tcp = struct.pack(">HHIIBBHHH", source, port, 1000, 0, 0x50, 2, 65535, 0, 0)
    tcp = tcp[:16] + checksum(ends + struct.pack(">II", len(tcp), 6) + tcp) + tcp[18:]
    head = bytes.fromhex("525400000001" + mac) + b"\\x86\\xdd"
    return head + struct.pack(">IHBB", 6 << 28, len(tcp), 6, 64) + ends + tcp
reached = set()
for number, (address, port) in enumerate(TARGETS):
    card.send(first(address, port, 5000 + number))
while 5000 + len(TARGETS) - 1 not in reached:
    frame = card.recv(2000)
    if frame[20] == 6 and frame[67] & 0x12 == 0x12:
        reached.add(struct.unpack(">H", frame[56:58])[0])
print(*(address for number, (address, _) in enumerate(TARGETS) if 5000 + number in reached))
"""


@pytest.mark.parametrize(
    "attack, case",
    [
        (ATTACK, ((), ())),
        # The front without its look at where frames lead.
        (ATTACK, (("--outward",), LOOPBACK)),
        # passt with its usual way to the host.
        (ATTACK, (("--no-map-gw",), (GATEWAY,))),
        (ATTACK6, ((), ())),
        (ATTACK6, (("--outward",), (LOOPBACK6, LINK6))),
        # Two parts hold this one: the gateway is of the link alone.
        (ATTACK6, (("--outward", "--no-map-gw"), (LOOPBACK6, LINK6, GATEWAY6))),
    ],
    ids=["closed", "front", "passt", "closed-6", "front-6", "both-6"],
)
def test_the_hosts_loopback_is_not_reached(
    ordinary: OrdinaryUser,
    tmp_path: Path,
    project: Path,
    attack: str,
    case: tuple[tuple[str, ...], tuple[str, ...]],
) -> None:
    """By none of these addresses; without the part that holds one of them back, by that."""
    opened, reached = case
    script = (project / "tests/security/opened.py").read_text()
    source = str(ordinary.project / "src")
    words = ("--net", "user", "--privileged", "--", "python3", "-c", attack)
    with (
        outside(Runner(ordinary), tmp_path) as network,
        network.running(
            *(source, *opened, "--", *words), program=("/usr/bin/python3", "-IS", "-c", script)
        ) as process,
    ):
        output, errors = process.communicate(timeout=120)
    outside_host = ADDRESS if attack == ATTACK else ADDRESS6
    assert output.decode().split() == [*reached, outside_host, outside_host], (output, errors)
