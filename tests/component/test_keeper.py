"""The keeper of the supervisor's terminal: its messages, and what it does when the supervisor is gone."""

from __future__ import annotations

import json
import os
import pty
import socket
import termios
from fcntl import ioctl
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cloche.host.fdlook import read_sockets
from cloche.host.keeper import MODE_SIZE, Keeper
from cloche.host.procfs import read_process
from cloche.host.warden import Ready, Warden
from support.wardens import ROLES, Role, descendants, make_role, next_events, shell

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.users import OrdinaryUser

FILE = Path(__file__).parents[2] / "protocol" / "vectors" / "keeper.json"
VECTORS = {
    item["name"]: (bytes.fromhex(item["hex"]), item["fields"]) for item in json.loads(FILE.read_text())
}


@pytest.fixture(params=ROLES)
def role(request: pytest.FixtureRequest, ordinary: OrdinaryUser) -> Role:
    """Provide root and an ordinary user, one after the other."""
    return make_role(request.param, ordinary)


def get_mode(terminal: int) -> bytes:
    """Return the terminal's mode as the kernel has it."""
    return ioctl(terminal, termios.TCGETS, bytes(MODE_SIZE))


def set_flags(mode: bytes, *, local: int = 0, control: int = 0) -> bytes:
    """Return a mode with these flags turned over."""
    changed = bytearray(mode)
    for start, flags in ((8, control), (12, local)):
        old = int.from_bytes(changed[start : start + 4], "little")
        changed[start : start + 4] = (old ^ flags).to_bytes(4, "little")
    return bytes(changed)


def keep(binary: str, body: Callable[[Keeper, int, bytes, bytes], None]) -> tuple[bytes, bytes, bytes]:
    """Start a warden, let ``body`` do something, end the supervisor's side; return the modes saved, raw and found."""
    master, terminal = pty.openpty()
    saved = get_mode(terminal)
    raw = set_flags(saved, local=termios.ICANON | termios.ECHO | termios.ISIG)
    with Warden.start(binary, keeper=True) as warden:
        assert next_events(warden) == [Ready()]
        assert warden.keeper is not None
        body(warden.keeper, terminal, saved, raw)
    # The warden was waited for: whatever it does is done.
    found = get_mode(terminal)
    os.close(master)
    os.close(terminal)
    return saved, raw, found


@pytest.mark.parametrize("name", VECTORS)
def test_messages_are_sent_as_specified(name: str) -> None:
    """Each call becomes exactly the bytes of its vector, and RAW comes with the terminal."""
    packet, fields = VECTORS[name]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        keeper = Keeper(ours)
        if fields["type"] == "RAW":
            keeper.raw(0, bytes.fromhex(fields["saved"]), bytes.fromhex(fields["raw"]))
        else:
            keeper.restored()
        data, fds, _, _ = socket.recv_fds(theirs, 1000, 4)
        assert data == packet
        assert len(fds) == (fields["type"] == "RAW")
        for fd in fds:
            os.close(fd)
        keeper.close()


def test_the_mode_is_restored_at_the_end(role: Role) -> None:
    """A terminal that was made raw, and not restored, has its mode back when the supervisor's side has ended."""

    @role.run
    def _() -> None:
        def body(keeper: Keeper, terminal: int, saved: bytes, raw: bytes) -> None:
            keeper.raw(terminal, saved, raw)
            ioctl(terminal, termios.TCSETS, raw)

        saved, raw, found = keep(role.warden, body)
        assert found == saved != raw


def test_without_the_message_the_terminal_stays_raw(role: Role) -> None:
    """The twin of the test above without the hand-over: nothing else restores the mode."""

    @role.run
    def _() -> None:
        def body(keeper: Keeper, terminal: int, saved: bytes, raw: bytes) -> None:
            del keeper, saved
            ioctl(terminal, termios.TCSETS, raw)

        _, raw, found = keep(role.warden, body)
        assert found == raw


def test_a_mode_that_others_set_is_theirs(role: Role) -> None:
    """Another mode than the raw one, and a raw one after RESTORED, are left alone; control flags do not count."""

    @role.run
    def _() -> None:
        def another(keeper: Keeper, terminal: int, saved: bytes, raw: bytes) -> None:
            keeper.raw(terminal, saved, raw)
            ioctl(terminal, termios.TCSETS, set_flags(raw, local=termios.ISIG))

        _, raw, found = keep(role.warden, another)
        assert found == set_flags(raw, local=termios.ISIG)

        def restored(keeper: Keeper, terminal: int, saved: bytes, raw: bytes) -> None:
            keeper.raw(terminal, saved, raw)
            keeper.restored()
            ioctl(terminal, termios.TCSETS, raw)

        _, raw, found = keep(role.warden, restored)
        assert found == raw

        def corrected(keeper: Keeper, terminal: int, saved: bytes, raw: bytes) -> None:
            keeper.raw(terminal, saved, raw)
            ioctl(terminal, termios.TCSETS, set_flags(raw, control=termios.HUPCL))

        saved, _, found = keep(role.warden, corrected)
        assert found == saved


def test_nobody_in_the_domain_has_the_terminal(role: Role) -> None:
    """The outer process alone has the terminal: neither PID 1 nor what it starts."""

    @role.run
    def _() -> None:
        master, terminal = pty.openpty()
        name = os.ttyname(terminal)
        with Warden.start(role.warden, keeper=True) as warden:
            assert next_events(warden) == [Ready()]
            assert warden.keeper is not None
            warden.keeper.raw(terminal, get_mode(terminal), get_mode(terminal))
            warden.send_spawn(shell("echo; exec sleep 1000"), ())
            (spawned,) = next_events(warden)
            os.close(spawned.pidfd)  # type: ignore[union-attr]
            holders = {}
            for one in descendants(warden.pid):
                process = read_process(one.pid, read_sockets(one.pid))
                assert process is not None
                # An ordinary user cannot look into PID 1.
                if process.files is not None:
                    holders[one.pid] = [file.number for file in process.files if file.target == name]
            assert len(holders) == (3 if role.entry is None and os.getuid() == 0 else 2)
            assert len(holders.pop(warden.pid)) == 1
            assert not any(holders.values())
        os.close(master)
        os.close(terminal)


def test_a_malformed_message_ends_it(role: Role) -> None:
    """What cannot be read is taken for the end: the terminal is restored, and the warden goes on."""

    @role.run
    def _() -> None:
        def body(keeper: Keeper, terminal: int, saved: bytes, raw: bytes) -> None:
            keeper.raw(terminal, saved, raw)
            ioctl(terminal, termios.TCSETS, raw)
            keeper.raw(terminal, saved, raw + b"\0")

        saved, _, found = keep(role.warden, body)
        assert found == saved
