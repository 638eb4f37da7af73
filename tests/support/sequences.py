"""What a guest tells of its kernel's secret for the sequence numbers of TCP.

The kernel begins a connection at a hash of its addresses and ports, made with the secret, plus the time in units of 64
nanoseconds (net/core/secure_seq.c). With the same addresses and ports, and the time taken off, equal secrets give equal
numbers: but for the time between the look at the clock and the connection.
"""

from __future__ import annotations

#: Prints a line for each of some connections whose addresses and ports never change: hash, and how exact it is. The
#: number is read by repairing the connection, so it needs the rights of the guest's root.
TELL = """
import socket, time
REPAIR, QUEUE, QUEUE_SEQ, SEND = 19, 20, 21, 2
for number in range(4):
    server = socket.create_server(("127.0.0.1", 5001 + number))
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.bind(("127.0.0.1", 4001 + number))
    before = time.time_ns()
    client.connect(("127.0.0.1", 5001 + number))
    after = time.time_ns()
    client.setsockopt(socket.IPPROTO_TCP, REPAIR, 1)
    client.setsockopt(socket.IPPROTO_TCP, QUEUE, SEND)
    first = client.getsockopt(socket.IPPROTO_TCP, QUEUE_SEQ) - 1
    print((first - (before >> 6)) % (1 << 32), (after - before) >> 6)
"""

_SPACE = 1 << 32
Told = tuple[tuple[int, int], ...]


def read_told(said: bytes) -> Told:
    """Return hash and exactness of each connection."""
    told = tuple((int(line.split()[0]), int(line.split()[1])) for line in said.splitlines())
    assert len(told) == 4, said
    return told


def same_secret(one: Told, other: Told) -> bool:
    """Tell whether two guests have the same secret.

    Four connections agree by chance in one of 10^6 trials, even where each has taken two seconds on a busy host.
    """
    assert max(exact for _, exact in (*one, *other)) < _SPACE // 100
    agree = [
        min((first - second) % _SPACE, (second - first) % _SPACE) <= max(exact, exact_too)
        for (first, exact), (second, exact_too) in zip(one, other, strict=True)
    ]
    return all(agree)
