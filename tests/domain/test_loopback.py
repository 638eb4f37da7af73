"""The loopback device: up for whoever looks, whatever they look at first, and there only when somebody does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.runs import Runner

_PYTHON = """
import socket, sys
family = socket.AF_INET6 if sys.argv[1] == '::1' else socket.AF_INET
server = socket.create_server((sys.argv[1], 0), family=family)
client = socket.create_connection(server.getsockname()[:2])
server.accept()[0].sendall(b'there')
print(client.recv(9).decode())
"""
#: What the first look is, and what it finds.
LOOKS = {
    "state": ("cat /sys/class/net/lo/operstate", "unknown"),
    "flags": ("cat /sys/class/net/lo/flags", "0x9"),
    "carrier": ("cat /sys/class/net/lo/carrier", "1"),
    "IPv6 addresses": ("cut -d' ' -f1 /proc/net/if_inet6", f"{1:032x}"),
    "routes": ("grep -c '127.0.0.1' /proc/net/fib_trie", "2"),
    "netlink": ("ip -brief link", "lo UNKNOWN 00:00:00:00:00:00 <LOOPBACK,UP,LOWER_UP>"),
    "IPv4": (f'python3 -c "{_PYTHON}" 127.0.0.1', "there"),
    "IPv6": (f'python3 -c "{_PYTHON}" ::1', "there"),
}


@pytest.mark.parametrize("look", LOOKS)
def test_the_first_look_finds_it_up(cloche: Runner, look: str) -> None:
    """Files, routes and sockets all find a device that is up, with nothing having looked before."""
    command, found = LOOKS[look]
    done = cloche.sh(command)
    assert " ".join(done.stdout.decode().split()) == found, done.stderr


def test_a_device_that_is_down_looks_different(cloche: Runner) -> None:
    """The twin: in a network namespace of the program's own the device is down, and the same looks say so."""
    script = "; ".join(LOOKS[look][0] for look in ("state", "flags", "IPv6 addresses", "routes"))
    # A sysfs shows the network of whoever mounts it.
    script = f"mount -t sysfs none /sys && {script}"
    done = cloche("--privileged", "unshare", "--net", "--mount", "sh", "-c", script)
    assert done.stdout.split() == [b"down", b"0x8", b"0"]


def test_what_root_takes_down_stays_down(cloche: Runner) -> None:
    """A program that takes the device down finds it down afterwards, whatever it looks at."""
    done = cloche.sh("ip link set lo down; cat /sys/class/net/lo/operstate; ip -brief link", "--privileged")
    assert done.stdout.split()[:3] == [b"down", b"lo", b"DOWN"]


def test_many_first_looks_at_once(cloche: Runner) -> None:
    """Whoever comes second waits until the device is up: none of many finds it down."""
    look = "cat /sys/class/net/lo/operstate & grep -c 127.0.0.1 /proc/net/fib_trie & "
    done = cloche.sh(look * 20 + "wait")
    assert sorted(done.stdout.split()) == [b"2"] * 20 + [b"unknown"] * 20
