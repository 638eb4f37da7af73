"""A program that puts a network stack behind a listening socket: stack.py ADDRESS FD, in a namespace of its own.

Frames that come over the connection go to a card of the kernel's (tap), and back. A service on port 7 sends back what
it gets. One connection is served at a time; when it ends, the next.
"""

import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import threading

TUNSETIFF = 0x400454CA
IFF_TAP_WITHOUT_HEADER = 0x1002
LONGEST = 2048


def make_card(address: str) -> int:
    """Make a card with this address, and return its descriptor."""
    card = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(card, TUNSETIFF, struct.pack("16sH22x", b"tap0", IFF_TAP_WITHOUT_HEADER))
    for words in (["addr", "add", f"{address}/24", "dev", "tap0"], ["link", "set", "tap0", "up"]):
        subprocess.run(["ip", *words], check=True)
    return card


def carry(card: int, connection: socket.socket) -> None:
    """Carry frames until the connection ends."""
    waiting = b""
    with select.epoll() as epoll:
        epoll.register(card, select.EPOLLIN)
        epoll.register(connection, select.EPOLLIN)
        while True:
            for fd, _ in epoll.poll():
                if fd == card:
                    frame = os.read(card, LONGEST)
                    connection.sendall(struct.pack(">I", len(frame)) + frame)
                    continue
                data = connection.recv(1 << 16)
                if not data:
                    return
                waiting += data
                while (
                    len(waiting) >= 4 + (length := int.from_bytes(waiting[:4], "big")) and len(waiting) >= 4
                ):
                    os.write(card, waiting[4 : 4 + length])
                    waiting = waiting[4 + length :]


def echo(connection: socket.socket) -> None:
    """Send back what comes."""
    try:
        with connection:
            while data := connection.recv(1 << 16):
                connection.sendall(data)
    except OSError:
        return  # the other side has gone


def serve(address: str) -> None:
    """Serve everybody who connects, each in a thread of its own."""
    with socket.create_server((address, 7), backlog=16) as server:
        while True:
            threading.Thread(target=echo, args=(server.accept()[0],), daemon=True).start()


def main() -> None:
    """See the module's docstring."""
    address, fd = sys.argv[1], int(sys.argv[2])
    card = make_card(address)
    threading.Thread(target=serve, args=(address,), daemon=True).start()
    os.write(1, b"ready\n")
    with socket.socket(fileno=fd) as listening:
        while True:
            connection, _ = listening.accept()
            try:
                with connection:
                    carry(card, connection)
            except (BrokenPipeError, ConnectionResetError):
                continue


main()
