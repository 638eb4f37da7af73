"""The file server, asked as a VMM and a guest kernel ask it."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from cloche.host.tools import require_own_binary
from support.virtiofs import MKDIR, OPEN, ROOT, SETATTR, UNLINK, Guest, refused, server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DAY_S = 86400
#: Somebody who has one id and no rights: alone in a user namespace, as in a domain of an ordinary user.
ALONE = ["unshare", "--user", f"--map-user={os.geteuid()}", f"--map-group={os.getegid()}"]
FEW = ["prlimit", "--nofile=512:512"]
TREE = ("--cache", "forever", "--ids", "squash-root", "--readonly")
SHARE = ("--cache", "coherent", "--ids", "caller:1000:1000")


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Guest]:
    """Provide a guest whose system tree is the host's root directory."""
    with server(tmp_path, "/", *TREE, wrapper=ALONE) as running, running.guest() as guest:
        guest.mount()
        yield guest


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Provide a directory to share."""
    path = tmp_path / "shared"
    path.mkdir()
    return path


@pytest.fixture
def share(tmp_path: Path, shared: Path) -> Iterator[Guest]:
    """Provide a guest that shares a directory."""
    with server(tmp_path, shared, *SHARE, wrapper=ALONE) as running, running.guest() as guest:
        guest.mount()
        yield guest


def test_the_tree_is_the_hosts(tree: Guest) -> None:
    """A file of the host arrives byte by byte, and belongs to root."""
    entry = tree.walk(b"usr/bin/env")
    with open("/usr/bin/env", "rb") as file:
        content = file.read()
    assert (entry.size, entry.owner) == (len(content), (0, 0))
    assert stat.S_IMODE(entry.mode) == 0o755
    handle = tree.open(entry.inode)
    assert tree.read(entry.inode, handle, len(content)) == content


@pytest.mark.parametrize("plus", [False, True])
def test_listings_are_complete(tree: Guest, plus: bool) -> None:
    """A directory of some thousand entries is listed whole, with and without attributes."""
    inode = tree.walk(b"usr/share/doc").inode
    assert sorted(tree.names(inode, plus=plus)) == sorted(os.listdir(b"/usr/share/doc"))


def test_the_tree_may_be_cached_for_a_day(tree: Guest) -> None:
    """What exists, what does not exist and the targets of links are believed for a day."""
    assert tree.lookup(ROOT, b"usr").lifetime_s == DAY_S
    missing = tree.lookup(ROOT, b"no such thing")
    assert (missing.inode, missing.lifetime_s) == (0, DAY_S)
    cache_symlinks = 1 << 23
    assert tree.mount() & cache_symlinks


def test_the_tree_is_never_opened_and_never_written(tree: Guest) -> None:
    """The first open is answered so that a guest never sends another; one for writing is refused."""
    inode = tree.walk(b"usr/bin/env").inode
    with refused(errno.ENOSYS):
        tree.ask(OPEN, inode, struct.pack("<II", os.O_RDONLY, 0))
    with refused(errno.EROFS):
        tree.ask(OPEN, inode, struct.pack("<II", os.O_RDWR, 0))
    with refused():
        tree.ask(UNLINK, ROOT, b"usr\0")


def test_a_share_is_written_through(share: Guest, shared: Path) -> None:
    """What the guest writes is on the host at once, and the host's changes are believed for a second at most."""
    entry, handle = share.create(ROOT, b"new", 0o640)
    assert share.write(entry.inode, handle, b"from the guest") == 14
    assert (shared / "new").read_bytes() == b"from the guest"
    assert stat.S_IMODE((shared / "new").stat().st_mode) == 0o640
    (shared / "new").write_bytes(b"from the host")
    assert share.read(entry.inode, handle, 100) == b"from the host"
    assert 0 < entry.lifetime_s <= 1
    assert share.lookup(ROOT, b"no such thing").lifetime_s < 1


def test_owners_of_a_share(share: Guest, shared: Path) -> None:
    """The caller is the caller, everybody else is nobody, and what the guest's root makes is the caller's."""
    entry, _ = share.create(ROOT, b"made", 0o644)
    assert entry.owner == (1000, 1000)
    made = (shared / "made").stat()
    assert (made.st_uid, made.st_gid) == (os.geteuid(), os.getegid())
    share.ask(MKDIR, ROOT, struct.pack("<II", 0o755, 0) + b"dir\0", uid=0)
    assert (shared / "dir").stat().st_uid == os.geteuid()


def test_giving_an_own_file_away_changes_nothing(share: Guest, shared: Path) -> None:
    """A change of owner as `tar x` makes it succeeds and has no effect."""
    entry, _ = share.create(ROOT, b"file", 0o644)
    uid_and_gid = 0b110
    body = struct.pack("<IIQQQQQQIIIIIIII", uid_and_gid, *[0] * 12, 33, 33, 0)
    answer = share.ask(SETATTR, entry.inode, body)
    assert struct.unpack_from("<II", answer, 16 + 68) == (1000, 1000)
    assert (shared / "file").stat().st_uid == os.geteuid()


def test_few_descriptors_are_enough_for_a_share(tmp_path: Path, shared: Path) -> None:
    """A guest kernel that looks at 20,000 files never gets an error from a server that may open 512."""
    for number in range(20_000):
        os.close(os.open(shared / str(number), os.O_CREAT | os.O_WRONLY))
    with server(tmp_path, shared, *SHARE, wrapper=[*ALONE, *FEW]) as running, running.guest() as guest:
        guest.mount()
        kept = 0
        for number in range(20_000):
            entry = guest.lookup(ROOT, b"%d" % number)
            if entry.lifetime_s:
                kept += 1
            else:  # Linux drops such an entry at its last use
                guest.forget(entry.inode)
            if number % 500 == 0:
                assert running.open_fds() < 512
        assert 100 < kept < 512


def test_few_descriptors_are_enough_for_any_number_of_inodes(tmp_path: Path, shared: Path) -> None:
    """A guest that never forgets (as under an overlay) may know 20,000 files of a tree and read them all."""
    for number in range(20_000):
        (shared / str(number)).write_text(str(number))
    with server(tmp_path, shared, *TREE, wrapper=[*ALONE, *FEW]) as running, running.guest() as guest:
        guest.mount()
        inodes = [guest.lookup(ROOT, b"%d" % number).inode for number in range(20_000)]
        for number, inode in enumerate(inodes):
            assert guest.read(inode, 0, 16) == b"%d" % number
            if number % 500 == 0:
                assert running.open_fds() < 512


def test_it_ends_with_its_vmm(tmp_path: Path) -> None:
    """The server ends with status 0 when the VMM disconnects, even before it said a word."""
    with server(tmp_path, "/", *TREE) as running, running.guest():
        pass


@pytest.mark.parametrize(
    "words",
    [
        ["--fd", "0"],
        ["--fd", "0", "--root", "relative", "--cache", "forever", "--ids", "host"],
        ["--fd", "0", "--root", "/", "--cache", "never", "--ids", "host"],
        ["--fd", "0", "--root", "/", "--cache", "forever", "--ids", "caller:0"],
        ["--nonsense"],
    ],
)
def test_a_wrong_command_line_is_named(words: list[str]) -> None:
    """A wrong command line ends it with status 2 and one sentence."""
    done = subprocess.run([require_own_binary("cloche-fs"), *words], capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"cloche-fs: ")
    assert done.stderr.count(b"\n") == 1


def test_too_few_descriptors_are_said_at_the_start(tmp_path: Path) -> None:
    """A server that could not work refuses to start and says how many files it may open."""
    argv = ["prlimit", "--nofile=100:100", require_own_binary("cloche-fs"), "--fd", "0", "--root", "/", *TREE]
    with socket.socket(socket.AF_UNIX) as listener:
        done = subprocess.run(argv, stdin=listener.fileno(), capture_output=True, check=False)
    assert done.returncode == 4
    assert b"100 open files" in done.stderr


def test_a_state_moves_to_another_server(tmp_path: Path, shared: Path) -> None:
    """What the guest knew is known to a server that was given the state of the first, under the same numbers."""
    (shared / "file").write_text("text")
    reader, writer = os.pipe()
    with server(tmp_path, shared, *TREE) as first, first.guest() as guest:
        guest.mount()
        inode = guest.lookup(ROOT, b"file").inode
        guest.move_state(0, writer)
        os.close(writer)
        with open(reader, "rb") as file:
            state = file.read()
        assert guest.moved()
    reader, writer = os.pipe()
    with server(tmp_path, shared, *TREE) as second, second.guest() as guest:
        os.write(writer, state)
        os.close(writer)
        guest.move_state(1, reader)
        os.close(reader)
        assert guest.moved()
        assert guest.read(inode, 0, 100) == b"text"
        # Nothing has been asked for since.
        assert not guest.moved()
