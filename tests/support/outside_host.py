"""Makes a host's network in namespaces of its own: outside_host.py DIRECTORY.

A card with a default route, whose address has a web server that shows DIRECTORY and a service that sends everything
back; on the loopback device a server of names, as systemd-resolved is one, and a service that nobody else is to reach.
"""

import http.server
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial

ADDRESS, ROUTER = "10.77.0.1", "10.77.0.254"
#: The same by IPv6, and the address that the card has for its link alone.
ADDRESS6, ROUTER6 = "fd77::1", "fd77::fe"
LINK6, HARDWARE = "fe80::ff:fe00:77", "02:00:00:00:00:77"
WEB_PORT, ECHO_PORT, SECRET_PORT = 80, 7, 8081
SECRET = b"a secret of the host"
COMMANDS = (
    "link set lo up",
    "link add up0 type veth peer name up1",
    f"addr add {ADDRESS}/24 dev up0",
    f"link set up0 address {HARDWARE}",
    f"addr add {ADDRESS6}/64 dev up0 nodad",
    f"addr add {LINK6}/64 dev up0 nodad",
    "link set up0 up",
    "link set up1 up",
    f"route add default via {ROUTER}",
    f"-6 route add default via {ROUTER6} dev up0",
)


def answer_names() -> None:
    """Say of every name that it is the web server's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 53))
        while True:
            query, whom = server.recvfrom(512)
            end = query.index(b"\0", 12) + 5
            question = query[12:end]
            is_address = question[-4:-2] == b"\0\1"
            answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton(ADDRESS) if is_address else b""
            head = query[:2] + b"\x81\x80\0\1" + (b"\0\1" if is_address else b"\0\0") + bytes(4)
            server.sendto(head + question + answer, whom)


def echo(connection: socket.socket) -> None:
    """Send back what comes."""
    try:
        with connection:
            while data := connection.recv(1 << 16):
                connection.sendall(data)
    except OSError:
        return  # the other side has gone


def tell(connection: socket.socket) -> None:
    """Tell the secret."""
    with connection:
        connection.sendall(SECRET)


def serve(address: str, port: int, what: Callable[[socket.socket], None]) -> None:
    """Serve everybody who connects, each in a thread of its own."""
    server = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    # What is of a link alone is asked for with the link.
    scope = (0, socket.if_nametoindex("up0")) if address == LINK6 else ()
    server.bind((address, port, *scope))
    server.listen(16)

    def loop() -> None:
        while True:
            threading.Thread(target=what, args=(server.accept()[0],), daemon=True).start()

    threading.Thread(target=loop, daemon=True).start()


def main() -> None:
    """See the module's docstring."""
    directory = sys.argv[1]
    for command in COMMANDS:
        subprocess.run(["ip", *command.split()], check=True)
    subprocess.run(
        ["mount", "--bind", os.path.join(directory, "resolv.conf"), "/etc/resolv.conf"], check=True
    )
    files = partial(http.server.SimpleHTTPRequestHandler, directory=directory)
    web = http.server.ThreadingHTTPServer((ADDRESS, WEB_PORT), files)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    serve(ADDRESS, ECHO_PORT, echo)
    serve(ADDRESS6, ECHO_PORT, echo)
    for address in ("127.0.0.1", "127.1.2.3", "::1", LINK6):
        serve(address, SECRET_PORT, tell)
    threading.Thread(target=answer_names, daemon=True).start()
    os.write(1, b"ready\n")
    os.read(0, 1)


main()
