"""Mounts that the warden makes in the tree of a process that runs, and takes away."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import socket
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from cloche.host.warden import Done, Spawned, Warden
from cloche.model.jail import BindFlag, Dir, Namespace
from support.wardens import (
    ALONE,
    ROLES,
    Role,
    descendants,
    domain,
    make_role,
    next_events,
    read_line,
    shell,
    small_jail,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.users import OrdinaryUser

WRITABLE = BindFlag.NOSUID | BindFlag.NODEV | BindFlag.RECURSIVE
READ_ONLY = WRITABLE | BindFlag.READ_ONLY
#: Does what it reads and says what came of it in one line.
LOOP = 'while read -r line; do eval "$line" 2>&1 | tr "\\n" ";"; echo; done'


@pytest.fixture(params=ROLES)
def role(request: pytest.FixtureRequest, ordinary: OrdinaryUser) -> Role:
    """Provide root and an ordinary user, one after the other."""
    return make_role(request.param, ordinary)


class Jailed(NamedTuple):
    """A shell in a jail of a domain, to be asked what it sees."""

    warden: Warden
    commands: int
    answers: int

    def sees(self, command: str) -> str:
        """Return what a command says there, a semicolon for each line end."""
        os.write(self.commands, command.encode() + b"\n")
        return read_line(self.answers)

    def done(self) -> Done:
        """Wait for the answer to a request."""
        (event,) = next_events(self.warden)
        assert isinstance(event, Done)
        return event

    def mount(self, source: Path | int, path: bytes, flags: int = READ_ONLY, *, ident: int = 1) -> Done:
        """Ask for a mount and return the answer."""
        fd = source if isinstance(source, int) else os.open(source, os.O_PATH)
        self.warden.send_mount(7, ident, path, flags, fd)
        if fd is not source:
            os.close(fd)
        return self.done()

    def unmount(self, path: bytes) -> Done:
        """Ask for its end and return the answer."""
        self.warden.send_unmount(8, 1, path)
        return self.done()


@contextmanager
def jailed(role: Role) -> Iterator[Jailed]:
    """Provide a shell in a jail with a directory /stage; for use inside ``role.run``."""
    theirs_in, commands = os.pipe()
    answers, theirs_out = os.pipe()
    with domain(role.warden) as warden:
        jail = small_jail(Dir(b"/stage"), namespaces=ALONE | Namespace.PID)
        warden.send_spawn(shell(LOOP, jail, fds=(0, 1)), (theirs_in, theirs_out))
        (event,) = next_events(warden)
        assert isinstance(event, Spawned)
        os.close(event.pidfd)
        os.close(theirs_in)
        os.close(theirs_out)
        yield Jailed(warden, commands, answers)
        os.close(commands)
        os.close(answers)


def test_a_directory_appears_and_goes(role: Role) -> None:
    """It is seen at its place at once, and neither it nor its place is seen afterwards."""

    @role.run
    def _() -> None:
        with role.directory() as directory, jailed(role) as inside:
            (directory / "file").write_text("text")
            assert inside.mount(directory, b"/stage/0") == Done(7, 0, "")
            assert inside.sees("cat /stage/0/file") == "text"
            assert inside.unmount(b"/stage/0") == Done(8, 0, "")
            assert inside.sees("ls /stage") == ""
            assert inside.unmount(b"/stage/0") == Done(8, 0, "")


@pytest.mark.parametrize("flags, written", [(READ_ONLY, False), (WRITABLE, True)])
def test_read_only_is_the_kernel_s(role: Role, flags: int, written: bool) -> None:
    """The process cannot write to a read-only one, nor to the root it lies in; to a writable one it can."""

    @role.run
    def _() -> None:
        with role.directory() as directory, jailed(role) as inside:
            assert inside.mount(directory, b"/stage/0", flags).errno == 0
            said = inside.sees("touch /stage/0/new")
            assert (directory / "new").exists() == written, said
            assert ("Read-only file system" in said) == (not written)
            assert "Read-only file system" in inside.sees("mkdir /stage/1")
            assert "rw" not in inside.sees("awk '$2 == \"/\" {print $4}' /proc/mounts").split(",")


def test_what_was_opened_is_mounted_and_not_what_its_name_leads_to(role: Role) -> None:
    """A directory that was renamed is still the one; one whose name was given away is never taken for another."""

    @role.run
    def _() -> None:
        with role.directory() as directory, jailed(role) as inside:
            good, other = directory / "good", directory / "other"
            for place in (good, other):
                place.mkdir()
                (place / "name").write_text(place.name)
            fd = os.open(good, os.O_PATH)
            good.rename(directory / "moved")
            other.rename(good)
            assert inside.mount(fd, b"/stage/0").errno == 0
            assert inside.sees("cat /stage/0/name") == "good"
            (directory / "moved" / "name").unlink()
            (directory / "moved").rmdir()
            # The kernel calls it "moved (deleted)" now, and somebody makes a directory of that name.
            (directory / "moved (deleted)").mkdir()
            refused = inside.mount(fd, b"/stage/1")
            assert (refused.errno, refused.what) == (errno.ESTALE, "find the directory")
            os.close(fd)


def test_a_mount_that_the_warden_does_not_see_is_refused(role: Role) -> None:
    """A descriptor of what is mounted elsewhere is not taken for what lies there in the warden's namespace."""

    @role.run
    def _() -> None:
        with role.directory() as directory, jailed(role) as inside:
            hidden = directory / "hidden"
            hidden.mkdir()
            fd = open_elsewhere(hidden)
            refused = inside.mount(fd, b"/stage/0")
            os.close(fd)
            assert (refused.errno, refused.what) == (errno.ESTALE, "find the directory")
            assert inside.sees("ls /stage") == ""


def open_elsewhere(place: Path) -> int:
    """Return a descriptor of a file system that is mounted at ``place`` in another mount namespace only."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        with ours, theirs:
            uid, gid = os.getuid(), os.getgid()
            libc = ctypes.CDLL(None, use_errno=True)
            libc.prctl(4, 1)  # PR_SET_DUMPABLE: one that has changed its user may not write its own maps
            assert libc.unshare(0x1000_0000 | 0x0002_0000) == 0  # CLONE_NEWUSER, CLONE_NEWNS
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
            assert libc.mount(b"none", os.fsencode(place), b"tmpfs", 0, None) == 0
            socket.send_fds(theirs, [b"x"], [os.open(place, os.O_PATH)])
            os._exit(0)
    theirs.close()
    with ours:
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    os.wait()
    return fds[0]


@pytest.mark.parametrize(
    "path, ident, code",
    [
        (b"/tmp", 1, errno.EEXIST),
        (b"/stage", 1, errno.EEXIST),
        (b"/usr/new", 1, errno.EROFS),
        (b"/missing/place", 1, errno.ENOENT),
        (b"/stage/../x", 1, errno.EINVAL),
        (b"stage/0", 1, errno.EINVAL),
        (b"/", 1, errno.EINVAL),
        (b"/stage/0", 9, errno.ESRCH),
    ],
)
def test_other_places_are_refused(role: Role, path: bytes, ident: int, code: int) -> None:
    """What exists, what lies in something bound, what is no path, and a process that is not there."""

    @role.run
    def _() -> None:
        with role.directory() as directory, jailed(role) as inside:
            before = inside.sees("cat /proc/self/mounts; ls /stage")
            assert inside.mount(directory, path, ident=ident).errno == code
            assert inside.sees("cat /proc/self/mounts; ls /stage") == before


def test_only_directories_are_mounted(role: Role) -> None:
    """A file is refused, and nothing is left at the place."""

    @role.run
    def _() -> None:
        with role.directory() as directory, jailed(role) as inside:
            (directory / "file").write_text("")
            assert inside.mount(directory / "file", b"/stage/0").errno == errno.ENOTDIR
            assert inside.sees("ls /stage") == ""


@contextmanager
def mounts_below(directory: Path, count: int) -> Iterator[None]:
    """Have so many file systems below a directory, in a mount namespace that this process makes for itself."""
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    libc.prctl(4, 1)  # as in ``open_elsewhere``
    assert libc.unshare((0x1000_0000 if uid else 0) | 0x0002_0000) == 0  # CLONE_NEWUSER, CLONE_NEWNS
    if uid:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    assert libc.mount(None, b"/", None, 0x4_4000, None) == 0  # MS_REC | MS_PRIVATE
    places = [directory / str(number) for number in range(count)]
    for place in places:
        place.mkdir()
        assert libc.mount(b"none", os.fsencode(place), b"tmpfs", 0, None) == 0
        (place / "below").touch()
    try:
        yield
    finally:
        for place in places:
            assert libc.umount2(os.fsencode(place), 0) == 0


def test_with_mounts_below_it_goes_whole_though_who_takes_it_away_is_killed(role: Role) -> None:
    """However far the child of PID 1 has come, it is said that it was broken off, and the next takes the rest."""

    @role.run
    def _() -> None:
        with role.directory() as directory, mounts_below(directory, 50), jailed(role) as inside:
            init = descendants(inside.warden.pid)[1].pid
            children = Path(f"/proc/{init}/task/{init}/children")
            look = "wc -l </proc/self/mounts; ls /stage"
            before, known = inside.sees(look), children.read_text().split()
            broken = 0
            for _ in range(1000):
                assert inside.mount(directory, b"/stage/0") == Done(7, 0, "")
                assert inside.sees("ls /stage/0/*/below | wc -l") == "50;"
                inside.warden.send_unmount(8, 1, b"/stage/0")
                while not (doing := [one for one in children.read_text().split() if one not in known]):
                    if select.select([inside.warden.fileno()], [], [], 0)[0]:
                        break
                for one in doing:
                    with suppress(ProcessLookupError):
                        os.kill(int(one), signal.SIGKILL)
                done = inside.done()
                assert done in {Done(8, 0, ""), Done(8, errno.EINTR, "broken off")}
                broken += done.errno != 0
                assert inside.unmount(b"/stage/0") == Done(8, 0, "")
                assert inside.sees(look) == before
                if broken == 3:
                    break
            assert broken == 3


def test_a_hundred_come_and_go_and_leave_nothing(role: Role) -> None:
    """Mounts, directories of the stage, and the warden's processes and descriptors are as before."""

    @role.run
    def _() -> None:
        with role.directory() as directory, jailed(role) as inside:
            look = "wc -l </proc/self/mounts; ls /stage | wc -l"

            def held() -> tuple[str, int, list[int]]:
                below = [one.pid for one in descendants(os.getpid())]
                init = descendants(inside.warden.pid)[1].pid
                fds = os.listdir(f"/proc/{init}/fd") if os.geteuid() == 0 else []
                return inside.sees(look), len(fds), below

            before = held()
            for turn in range(100):
                assert inside.mount(directory, b"/stage/%d" % turn).errno == 0
            assert inside.sees("ls /stage | wc -l") == "100;"
            for turn in range(100):
                assert inside.unmount(b"/stage/%d" % turn).errno == 0
            # Those that did it may not be reaped yet: asked once more, PID 1 has been.
            assert inside.unmount(b"/stage/0").errno == 0
            after = held()
            assert (after[0], after[1]) == (before[0], before[1])
