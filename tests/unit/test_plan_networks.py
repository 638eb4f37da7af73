"""Reading ``--net``, and what a plan with a network holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.drivers.registry import find_driver
from cloche.errors import HostError, UsageError
from cloche.model.guest import Interface, WriteFile
from cloche.model.jail import Bind, Namespace
from cloche.model.plan import Connection, EndpointKind, LaunchPlan
from cloche.model.request import Network, NetworkKind
from cloche.plan.networks import is_card_address, parse_network
from support.plans import KERNEL, TOOLS, facts, plan, process, request, values

MAC = "02:00:00:00:00:01"
NETWORK = Network("/run/peer.sock", MAC)


@pytest.mark.parametrize(
    "word, expected",
    [
        ("none", None),
        ("socket:a.sock", ("socket", "a.sock", None)),
        ("socket:/a,b:c", ("socket", "/a,b:c", None)),
        (f"socket:a,mac={MAC}", ("socket", "a", MAC)),
        ("socket:a,mac=02:00:00:00:00:AB", ("socket", "a", "02:00:00:00:00:ab")),
        ("user", ("user", "", None)),
        (f"user,mac={MAC}", ("user", "", MAC)),
    ],
)
def test_a_network_is_read(word: str, expected: tuple[str, str, str | None] | None) -> None:
    """The socket's path, which may hold anything, and the card's address are told apart."""
    assert parse_network(word) == expected


@pytest.mark.parametrize(
    "word",
    [
        *(
            "",
            "socket",
            "socket:",
            "lan",
            "None",
            "user:",
            "user:x",
            "users",
            "socket:a\0b",
            f"socket:,mac={MAC}",
        ),
        *(
            f"socket:a,mac={mac}"
            for mac in (
                "",
                "02:00:00:00:00",
                "03:00:00:00:00:01",
                "00:00:00:00:00:00",
                "2:0:0:0:0:1",
                f"{MAC}:",
            )
        ),
    ],
)
def test_what_is_malformed_is_refused(word: str) -> None:
    """A word that names no network is a usage error that says what was wrong."""
    with pytest.raises(UsageError, match="--net"):
        parse_network(word)


@given(st.text())
def test_whatever_is_written_is_read_or_refused(word: str) -> None:
    """No word crashes the parser, and what is read are a kind, a path and a card's address."""
    for text in (word, f"socket:{word}", f"socket:a,mac={word}", f"user,{word}"):
        try:
            parsed = parse_network(text)
        except UsageError:
            continue
        if parsed is not None:
            kind, path, mac = parsed
            assert bool(path) is (kind == "socket")
            assert mac is None or is_card_address(mac)


def made() -> LaunchPlan:
    """Return the plan of a machine with a network."""
    return plan(request(network=NETWORK))


def test_the_front_has_two_sockets_and_nothing_else() -> None:
    """The front sees no file and no network, and is started again with a fresh connection when it dies."""
    front = process(made(), "net")
    assert front.argv == (b"cloche-net", b"--fd", b"3", b"--mac", MAC.encode(), b"--mtu", b"1500")
    assert front.connections == (Connection("/run/peer.sock", 4, (b"--peer-fd", b"4")),)
    assert front.files == ()
    assert front.jail.root == ()
    assert front.jail.keep_caps == 0
    assert front.jail.namespaces & Namespace.NET
    assert front.restarts
    assert {e.name: e.kind for e in made().endpoints}["net0"] == EndpointKind.LISTEN


def test_qemu_knows_a_socket_and_no_path_of_the_peer() -> None:
    """QEMU is given the card's address, sees the front's socket alone, and carries no commands for the guest out."""
    vmm = process(made(), "vmm")
    assert b"/run/peer.sock" not in b" ".join(vmm.argv)
    card = next(word for word in values(vmm.argv, "-device") if word.startswith("virtio-net-device,"))
    assert f"mac={MAC},host_mtu=1500,ctrl_vq=off" in card
    assert values(vmm.argv, "-netdev") == ["vhost-user,id=net0-front,chardev=net0"]
    assert "socket,id=net0,path=/run/devices/net0,reconnect-ms=50" in values(vmm.argv, "-chardev")
    assert [op.path for op in vmm.jail.root if isinstance(op, Bind) and b"devices" in op.path] == [
        b"/run/devices/net0"
    ]


def test_an_older_qemu_counts_in_seconds() -> None:
    """QEMU 7.2 knows no milliseconds."""
    old = facts(tools=TOOLS._replace(qemu_version=(7, 2)))
    words = values(process(plan(request(network=NETWORK), old), "vmm").argv, "-chardev")
    assert "socket,id=net0,path=/run/devices/net0,reconnect=1" in words


def test_without_a_network_nothing_of_it_is_in_the_plan() -> None:
    """No card, no front, no other filter for QEMU."""
    plain = plan(request())
    assert [p.name for p in plain.processes] == ["vmm", "fs-system"]
    assert b"net" not in b" ".join(process(plain, "vmm").argv)


def test_a_container_has_no_card() -> None:
    """The bwrap driver says that it cannot do it."""
    with pytest.raises(UsageError, match="cannot do --net"):
        find_driver("bwrap").plan(request(network=NETWORK), facts(), KERNEL)


def test_a_user_network_stands_behind_the_front() -> None:
    """Passt alone is in the host's network, and the front lets nothing out that is for the host itself."""
    made = plan(request(network=Network("", MAC, kind=NetworkKind.USER)))
    front, passt = process(made, "net"), process(made, "passt")
    assert b"--outward" in front.argv
    assert {b"--no-map-gw", b"--fd"} <= set(passt.argv)
    assert Namespace.NET & front.jail.namespaces
    assert [one.name for one in made.processes if not one.jail.namespaces & Namespace.NET] == ["passt"]
    ends = [one for two in (front, passt) for one in two.descriptors if one.endpoint == "net0-outside"]
    assert [one.side for one in ends] == ["one", "other"]
    assert any(one.kind == EndpointKind.JOIN for one in made.endpoints)
    assert front.connections == ()
    # Where no passt is installed the plan says so.
    with pytest.raises(HostError, match="passt"):
        plan(request(network=Network("", MAC, kind=NetworkKind.USER)), facts(tools=TOOLS._replace(passt="")))


def test_a_guest_of_a_user_network_is_set_up() -> None:
    """It has an address, a way out and somebody to ask for names; one with a socket has nothing of these."""
    user = plan(request(network=Network("", MAC, kind=NetworkKind.USER))).setup
    steps = [step for step in user if isinstance(step, Interface | WriteFile)]
    assert Interface(b"eth0", 0x0A00020F, 24, 0x0A000202) in steps
    assert any(isinstance(step, WriteFile) and step.content == b"nameserver 10.0.2.3\n" for step in steps)
    assert not any(isinstance(step, Interface) for step in plan(request(network=NETWORK)).setup)
