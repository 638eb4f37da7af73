"""The golden vectors of the warden's socket, which the Rust tests read, too."""

from __future__ import annotations

import json
import os
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cloche.errors import LaunchError, ProtocolError
from cloche.host.warden import Done, Event, Exited, Failed, Ready, Spawned, Warden, encode_spawn
from cloche.model import jail as model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FILE = Path(__file__).parents[2] / "protocol" / "vectors" / "warden.json"
VECTORS = {
    item["name"]: (bytes.fromhex(item["hex"]), item["fields"]) for item in json.loads(FILE.read_text())
}
COMMANDS = {name: vector for name, vector in VECTORS.items() if vector[0][0] < 65}
EVENTS = {name: vector for name, vector in VECTORS.items() if vector[0][0] >= 65}

OPS = {
    "DIR": model.Dir,
    "BIND": model.Bind,
    "FILE": model.File,
    "SYMLINK": model.Symlink,
    "TMPFS": model.Tmpfs,
    "PROC": model.Proc,
    "DEV": model.Dev,
    "BIND_FD": model.BindFd,
}


@contextmanager
def connected() -> Iterator[tuple[Warden, socket.socket]]:
    """Provide the supervisor's side and, in place of a warden, the other end of its socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        warden = Warden(ours, 0)
        try:
            yield warden, theirs
        finally:
            warden.close()


def spec_of(fields: dict[str, Any]) -> model.SpawnSpec:
    """Return the SPAWN that the fields of a vector describe."""
    jail = fields["jail"]
    return model.SpawnSpec(
        id=fields["id"],
        name=bytes.fromhex(fields["name"]),
        argv=tuple(map(bytes.fromhex, fields["argv"])),
        env=tuple(map(bytes.fromhex, fields["env"])),
        fds=tuple(None if number == 0xFFFF_FFFF else number for number in fields["fds"]),
        exe_fd=bool(fields["exe_fd"]),
        cgroup=bool(fields["cgroup"]),
        jail=model.Jail(
            **{
                **jail,
                "hostname": bytes.fromhex(jail["hostname"]),
                "cwd": bytes.fromhex(jail["cwd"]),
                "seccomp": bytes.fromhex(jail["seccomp"]),
                "rlimits": tuple((one["resource"], one["soft"], one["hard"]) for one in jail["rlimits"]),
                "root": tuple(map(op_of, jail["root"])),
            }
        ),
    )


def op_of(fields: dict[str, Any]) -> model.RootOp:
    """Return the root operation that the fields of a vector describe."""
    values = {
        name: bytes.fromhex(value) if isinstance(value, str) else value
        for name, value in fields.items()
        if name != "op"
    }
    kind: Callable[..., model.RootOp] = OPS[fields["op"]]
    return kind(**values)


def sent(fields: dict[str, Any]) -> bytes:
    """Return the packet that the call with these fields sends."""
    with connected() as (warden, other):
        if fields["type"] == "SPAWN":
            return encode_spawn(spec_of(fields))
        if fields["type"] == "KILL":
            warden.kill(fields["id"], fields["signo"])
        elif fields["type"] == "MOUNT":
            path = bytes.fromhex(fields["path"])
            warden.send_mount(fields["request"], fields["id"], path, fields["flags"], 0)
        elif fields["type"] == "UNMOUNT":
            warden.send_unmount(fields["request"], fields["id"], bytes.fromhex(fields["path"]))
        else:
            warden.shutdown()
        return other.recv(100)


def received(packet: bytes, fds: list[int]) -> Event:
    """Return the event that a packet is taken for."""
    with connected() as (warden, other):
        socket.send_fds(other, [packet], fds)
        (event,) = warden.receive(wait=True)
        return event


def event_of(fields: dict[str, Any]) -> Event:
    """Return the event that the fields of a vector describe, with -1 for a descriptor."""
    if fields["type"] == "READY":
        return Ready()
    if fields["type"] == "SPAWNED":
        return Spawned(fields["id"], fields["pid"], -1)
    if fields["type"] == "FAILED":
        return Failed(fields["id"], fields["errno"], bytes.fromhex(fields["what"]).decode())
    if fields["type"] == "DONE":
        return Done(fields["request"], fields["errno"], bytes.fromhex(fields["what"]).decode())
    if fields["kind"] == 0:
        return Exited(fields["id"], fields["value"])
    return Exited(fields["id"], -1, fields["value"])


def without_descriptor(event: Event) -> Event:
    """Close the descriptor of an event and replace it by -1."""
    if isinstance(event, Spawned):
        os.close(event.pidfd)
        return event._replace(pidfd=-1)
    return event


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_are_sent_as_specified(name: str) -> None:
    """Each command becomes exactly the bytes of its vector."""
    packet, fields = COMMANDS[name]
    assert sent(fields) == packet


@pytest.mark.parametrize("name", EVENTS)
def test_events_are_read_as_specified(name: str) -> None:
    """Each event's bytes are taken for what the vector says, and no other bytes are."""
    packet, fields = EVENTS[name]
    fds = [0] if fields["type"] == "SPAWNED" else []
    expected = event_of(fields)
    assert without_descriptor(received(packet, fds)) == expected
    for at in range(len(packet)):
        damaged = bytearray(packet)
        damaged[at] ^= 0x40
        try:
            assert without_descriptor(received(bytes(damaged), fds)) != expected
        except ProtocolError:
            continue


@pytest.mark.parametrize("name", EVENTS)
def test_malformed_events_are_protocol_errors(name: str) -> None:
    """Cut and trailing bytes, and a descriptor too many or too few, are refused; no descriptor stays open."""
    packet, fields = EVENTS[name]
    fds = [0] if fields["type"] == "SPAWNED" else []
    before = os.listdir("/proc/self/fd")
    for broken in (*(packet[:end] for end in range(1, len(packet))), packet + b"\0"):
        with pytest.raises(ProtocolError):
            received(broken, fds)
    with pytest.raises(ProtocolError):
        received(packet, [] if fds else [0])
    with pytest.raises(ProtocolError):
        received(packet, [0, 0])
    with pytest.raises(ProtocolError):
        received(packet.ljust(5000, b"\0"), fds)
    assert os.listdir("/proc/self/fd") == before


def test_events_before_the_end_are_not_lost() -> None:
    """What was reported before the warden went away is returned first; then the error comes."""
    with connected() as (warden, other):
        other.send(EVENTS["ready"][0])
        other.close()
        assert warden.receive() == [Ready()]
        with pytest.raises(LaunchError):
            warden.receive()
