"""A share that was taken away, against a guest that keeps what it knew of it: numbers of files and open ones.

The server is the real one in a jail as it has in a domain. The mutant is a supervisor that only takes the mount away
and does not tell the server.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from cloche.host.warden import Done, Spawned, Warden
from cloche.model.jail import BindFlag, Dir, Jail, Namespace, Proc, SpawnSpec
from support.virtiofs import OPENDIR, READDIR, ROOT, Guest, refused
from support.wardens import ALONE, ROLES, Role, domain, make_role, next_events

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.users import OrdinaryUser

WRITABLE = BindFlag.NOSUID | BindFlag.NODEV | BindFlag.RECURSIVE
#: What root's server has in a domain of root's (`OWNER_CAPABILITIES`).
CAPABILITIES = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7


@pytest.fixture(params=ROLES)
def role(request: pytest.FixtureRequest, ordinary: OrdinaryUser) -> Role:
    """Provide root and an ordinary user, one after the other."""
    return make_role(request.param, ordinary)


class Shares(NamedTuple):
    """A server of shares in its jail, a guest that speaks to it, and the supervisor's two ways to it."""

    warden: Warden
    guest: Guest
    orders: socket.socket

    def add(self, number: int, directory: Path) -> None:
        """Show a directory, writable."""
        fd = os.open(directory, os.O_PATH)
        self.warden.send_mount(number, 1, b"/stage/%d" % number, WRITABLE, fd)
        os.close(fd)
        assert next_events(self.warden) == [Done(number, 0, "")]

    def remove(self, number: int, *, told: bool = True) -> int:
        """Take it away; returns how many things the server let go of. The mutant does not tell the server."""
        self.warden.send_unmount(number, 1, b"/stage/%d" % number)
        assert next_events(self.warden) == [Done(number, 0, "")]
        if not told:
            return 0
        self.orders.sendall(struct.pack("<I", number))
        answered, code, count = struct.unpack("<III", self.orders.recv(12, socket.MSG_WAITALL))
        assert (answered, code) == (number, 0)
        return int(count)

    def save(self) -> bytes:
        """Return what the server writes down when its domain is saved."""
        reader, writer = os.pipe()
        self.guest.move_state(0, writer)
        os.close(writer)
        with open(reader, "rb") as file:
            state = file.read()
        assert self.guest.moved()
        return state

    def load(self, state: bytes) -> None:
        """Have the server of a domain that goes on read it."""
        reader, writer = os.pipe()
        os.write(writer, state)
        os.close(writer)
        self.guest.move_state(1, reader)
        os.close(reader)
        assert self.guest.moved()


@contextmanager
def shares(role: Role, *, saved: bool = False) -> Iterator[Shares]:
    """Provide a server as a domain has it; for use inside ``role.run``. A guest that was ``saved`` mounts nothing."""
    frontend, theirs = socket.socketpair()
    orders, their_orders = socket.socketpair()
    orders.settimeout(20)
    program = os.open(Path(role.warden).with_name("cloche-fs"), os.O_PATH)
    ids = "host" if os.geteuid() == 0 else "caller:1000:1000"
    jail = Jail(
        namespaces=ALONE | Namespace.PID,
        keep_caps=CAPABILITIES if os.geteuid() == 0 else 0,
        root=(Dir(b"/stage"), Proc(b"/proc")),
    )
    words = f"cloche-fs --fd 3 --orders 4 --root /stage --cache coherent --ids {ids}"
    with domain(role.warden) as warden:
        spec = SpawnSpec(1, b"fs", tuple(words.encode().split()), (), jail, (3, 4, 2), exe_fd=True)
        warden.send_spawn(spec, (theirs.fileno(), their_orders.fileno(), 2, program))
        (event,) = next_events(warden)
        assert isinstance(event, Spawned), event
        for fd in (event.pidfd, program):
            os.close(fd)
        theirs.close()
        their_orders.close()
        guest = Guest(frontend)
        if not saved:
            guest.mount()
        try:
            yield Shares(warden, guest, orders)
        finally:
            guest.close()
            orders.close()


def fill(directory: Path) -> None:
    """Make something to be reached."""
    (directory / "inner").mkdir()
    (directory / "inner" / "file").write_text("before")


@pytest.mark.parametrize("told", [True, False])
def test_nothing_of_a_removed_share_is_reached(role: Role, told: bool) -> None:
    """Numbers and open files of it are of no use any more; to the mutant's guest all of them are."""

    @role.run
    def _() -> None:
        with role.directory() as directory, shares(role) as domain:
            fill(directory)
            guest = domain.guest
            domain.add(0, directory)
            top = guest.lookup(ROOT, b"0").inode
            inner = guest.lookup(top, b"inner").inode
            file = guest.lookup(inner, b"file").inode
            handle = guest.open(file, os.O_RDWR)
            listing = struct.unpack_from("<Q", guest.ask(OPENDIR, inner, bytes(8)))[0]
            assert guest.read(file, handle, 99) == b"before"
            released = domain.remove(0, told=told)
            list_again = struct.pack("<QQIIQII", listing, 0, 4096, 0, 0, 0, 0)
            if not told:
                guest.write(file, handle, b"after!")
                assert guest.read(file, handle, 99) == b"after!"
                # Landlock may stop the rest: what is mounted nowhere lies below nothing that it allows.
                assert (directory / "inner" / "file").read_text() == "after!"
                return
            assert released == 5
            attacks = (
                lambda: guest.read(file, handle, 99),
                lambda: guest.write(file, handle, b"after!"),
                lambda: guest.open(file, os.O_RDWR),
                lambda: guest.attributes(file),
                lambda: guest.attributes(top),
                lambda: guest.lookup(inner, b"file"),
                lambda: guest.create(inner, b"new", 0o644),
                lambda: guest.ask(READDIR, inner, list_again),
                lambda: guest.ask(OPENDIR, top, bytes(8)),
            )
            for attack in attacks:
                with refused(errno.ESTALE):
                    attack()
            for inode in (ROOT, 0, 2**64 - 1):
                with refused(errno.EBADF, errno.ESTALE):
                    guest.read(inode, handle, 99)
            assert guest.lookup(ROOT, b"0").inode == 0
            assert (directory / "inner" / "file").read_text() == "before"
            assert not (directory / "inner" / "new").exists()


@pytest.mark.parametrize("told", [True, False])
def test_nothing_of_a_removed_share_is_reached_after_a_restore(role: Role, told: bool) -> None:
    """What the guest had when it was saved is the next server's to let go of; the mutant's guest keeps it, too."""

    @role.run
    def _() -> None:
        with role.directory() as directory:
            fill(directory)
            with shares(role) as domain:
                domain.add(0, directory)
                inner = domain.guest.walk(b"/0/inner").inode
                file = domain.guest.lookup(inner, b"file").inode
                handle = domain.guest.open(file, os.O_RDWR)
                state = domain.save()
            with shares(role, saved=True) as domain:
                guest = domain.guest
                domain.add(0, directory)
                domain.load(state)
                assert guest.read(file, handle, 99) == b"before"
                released = domain.remove(0, told=told)
                if not told:
                    guest.write(file, handle, b"after!")
                    assert (directory / "inner" / "file").read_text() == "after!"
                    return
                assert released == 4
                attacks = (
                    lambda: guest.read(file, handle, 99),
                    lambda: guest.write(file, handle, b"after!"),
                    lambda: guest.open(file, os.O_RDWR),
                    lambda: guest.attributes(file),
                    lambda: guest.lookup(inner, b"file"),
                    lambda: guest.create(inner, b"new", 0o644),
                )
                for attack in attacks:
                    with refused(errno.ESTALE):
                        attack()
                assert guest.lookup(ROOT, b"0").inode == 0
                assert (directory / "inner" / "file").read_text() == "before"


def test_other_shares_and_a_new_one_are_not_touched(role: Role) -> None:
    """What is open of another share stays open, and the same directory can be shared again."""

    @role.run
    def _() -> None:
        with role.directory() as one, role.directory() as other, shares(role) as domain:
            fill(one)
            fill(other)
            domain.add(0, one)
            domain.add(1, other)
            file = domain.guest.walk(b"/1/inner/file").inode
            handle = domain.guest.open(file, os.O_RDWR)
            gone = domain.guest.walk(b"/0/inner/file").inode
            assert domain.remove(0) == 3
            assert domain.guest.read(file, handle, 99) == b"before"
            domain.add(2, one)
            again = domain.guest.walk(b"/2/inner/file").inode
            assert again != gone
            assert domain.guest.read(again, domain.guest.open(again), 99) == b"before"
            with refused(errno.ESTALE):
                domain.guest.attributes(gone)


def test_a_guest_that_forgets_too_late_takes_nothing_from_others(role: Role) -> None:
    """Forgetting and closing what is gone changes nothing for what is there."""

    @role.run
    def _() -> None:
        with role.directory() as one, role.directory() as other, shares(role) as domain:
            fill(one)
            fill(other)
            domain.add(0, one)
            gone = domain.guest.walk(b"/0/inner/file").inode
            domain.remove(0)
            domain.add(1, other)
            there = domain.guest.walk(b"/1/inner/file").inode
            for inode in (*range(gone + 1), gone):
                if inode != ROOT:
                    domain.guest.forget(inode, 2**63)
            assert domain.guest.attributes(there)
            assert domain.remove(1) == 3


def test_a_hundred_shares_leave_no_descriptor(role: Role) -> None:
    """After all were added, walked and removed the server has as many descriptors and mounts as before."""

    @role.run
    def _() -> None:
        with role.directory() as directory, shares(role) as domain:
            fill(directory)
            held = 0
            for number in range(100):
                domain.add(number, directory)
                file = domain.guest.walk(b"/%d/inner/file" % number).inode
                domain.guest.open(file)
                held += domain.remove(number)
            assert held == 400
            assert domain.remove(100) == 0
            assert domain.guest.lookup(ROOT, b"99").inode == 0
