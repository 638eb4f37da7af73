"""Every operation of a share, once: what the guest's kernel may ask a file server for."""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import TYPE_CHECKING

import pytest

from support.virtiofs import (
    LINK,
    MKDIR,
    MKNOD,
    OPENDIR,
    READLINK,
    RELEASE,
    RENAME,
    RMDIR,
    ROOT,
    SETATTR,
    SYMLINK,
    UNLINK,
    Guest,
    refused,
    server,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: More FUSE opcodes (include/uapi/linux/fuse.h).
STATFS, FSYNC, SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR, FLUSH = 17, 20, 21, 22, 23, 24, 25
RELEASEDIR, FSYNCDIR, ACCESS, FALLOCATE, RENAME2, LSEEK, COPY_FILE_RANGE, SYNCFS = (
    29,
    30,
    34,
    43,
    45,
    46,
    47,
    50,
)
#: Bits of SETATTR.
MODE, UID, GID, SIZE, MTIME, FH, KILL_SUIDGID = 1, 2, 4, 8, 32, 64, 1 << 11
SETXATTR_EXT = 1 << 29

#: Who owns what is made: the caller's own id for all, or (where root shares) whoever the guest says.
IDS = ["caller:1000:1000", "host"] if os.geteuid() == 0 else ["caller:1000:1000"]


@pytest.fixture(params=IDS)
def share(request: pytest.FixtureRequest, tmp_path: Path, shared: Path) -> Iterator[Guest]:
    """Provide a guest with a writable share."""
    words = ("--cache", "coherent", "--ids", request.param)
    with server(tmp_path, shared, *words) as running, running.guest() as guest:
        yield guest


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Provide the directory that is shared."""
    path = tmp_path / "shared"
    path.mkdir()
    return path


def attributes(valid: int, *, fh: int = 0, size: int = 0, mode: int = 0, owner: int = 0) -> bytes:
    """Return the body of a SETATTR."""
    times = struct.pack("<QQQIII", 100, 100, 0, 5, 5, 0)
    return (
        struct.pack("<IIQQQ", valid, 0, fh, size, 0) + times + struct.pack("<IIIII", mode, 0, owner, owner, 0)
    )


def test_files(share: Guest, shared: Path) -> None:
    """Written, read, grown, cut, copied, synced and sought in, files are on the host what they are for the guest."""
    share.mount()
    entry, handle = share.create(ROOT, b"file", 0o644)
    inode = entry.inode
    assert share.write(inode, handle, b"0123456789") == 10
    assert share.read(inode, handle, 100) == b"0123456789"
    share.ask(FALLOCATE, inode, struct.pack("<QQQII", handle, 0, 100_000, 0, 0))
    assert (shared / "file").stat().st_size == 100_000
    share.ask(SETATTR, inode, attributes(SIZE | FH, fh=handle, size=1000))
    share.ask(SETATTR, inode, attributes(SIZE, size=20))
    assert (shared / "file").read_bytes() == b"0123456789" + bytes(10)
    (where,) = struct.unpack("<Q", share.ask(LSEEK, inode, struct.pack("<QQII", handle, 0, 4, 0)))
    assert where == 20
    other, target = share.create(ROOT, b"copy", 0o600)
    body = struct.pack("<QQQQQQQ", handle, 2, other.inode, target, 0, 4, 0)
    assert share.ask(COPY_FILE_RANGE, inode, body)[:4] == struct.pack("<I", 4)
    assert (shared / "copy").read_bytes() == b"2345"
    for is_data in (0, 1):
        share.ask(FSYNC, inode, struct.pack("<QII", handle, is_data, 0))
    with refused(errno.ENOSYS):  # the guest's kernel then leaves it out
        share.ask(FLUSH, inode, struct.pack("<QIIQ", handle, 0, 0, 0))
    share.ask(RELEASE, inode, struct.pack("<QIIQ", handle, 0, 2, 0))
    assert share.read(inode, share.open(inode, os.O_RDONLY), 4) == b"0123"
    share.open(inode, os.O_RDWR | os.O_TRUNC)
    share.ask(SYNCFS, ROOT, bytes(8))
    assert len(share.ask(STATFS, ROOT)) == 80


def test_attributes(share: Guest, shared: Path) -> None:
    """Modes, times and owners are set, on open files and by name, on links as well as files."""
    share.mount()
    entry, handle = share.create(ROOT, b"file", 0o644)
    share.ask(SETATTR, entry.inode, attributes(MODE, mode=0o100640))
    share.ask(SETATTR, entry.inode, attributes(MODE | FH, fh=handle, mode=0o104750))
    assert stat.S_IMODE((shared / "file").stat().st_mode) in {0o4750, 0o750}
    share.ask(SETATTR, entry.inode, attributes(MTIME))
    share.ask(SETATTR, entry.inode, attributes(MTIME | FH, fh=handle))
    assert (shared / "file").stat().st_mtime_ns == 100 * 10**9 + 5
    share.ask(SETATTR, entry.inode, attributes(UID | GID, owner=0))
    # Written by somebody else: what made it run as its owner goes.
    share.ask(SETATTR, entry.inode, attributes(SIZE | FH | KILL_SUIDGID, fh=handle, size=1))
    body = struct.pack("<QQIIQII", handle, 0, 1, 4, 0, 0, 0) + b"x"
    share.ask(16, entry.inode, body)
    share.ask(ACCESS, entry.inode, struct.pack("<II", os.R_OK, 0))


def test_owners(share: Guest, shared: Path) -> None:
    """What somebody else in the guest makes belongs to them where owners are the host's, and else to the caller."""
    share.mount()
    share.ask(MKDIR, ROOT, struct.pack("<II", 0o755, 0) + b"dir\0", uid=1000)
    made = (shared / "dir").stat().st_uid
    assert made == os.geteuid() or (os.geteuid() == 0 and made == 1000)


def test_names(share: Guest, shared: Path) -> None:
    """Directories, links, pipes and new names are made, listed, and taken away again."""
    share.mount()
    share.ask(MKDIR, ROOT, struct.pack("<II", 0o755, 0) + b"dir\0")
    place = share.lookup(ROOT, b"dir").inode
    share.ask(SYMLINK, ROOT, b"link\0dir\0")
    assert share.ask(READLINK, share.lookup(ROOT, b"link").inode) == b"dir"
    share.ask(MKNOD, ROOT, struct.pack("<IIII", stat.S_IFIFO | 0o600, 0, 0, 0) + b"pipe\0")
    assert stat.S_ISFIFO((shared / "pipe").lstat().st_mode)
    share.create(place, b"file", 0o644)
    inode = share.lookup(place, b"file").inode
    share.ask(LINK, ROOT, struct.pack("<Q", inode) + b"hard\0")
    assert (shared / "hard").stat().st_nlink == 2
    share.ask(RENAME, ROOT, struct.pack("<Q", place) + b"hard\0moved\0")
    share.ask(RENAME2, place, struct.pack("<QII", ROOT, 1, 0) + b"moved\0new\0")
    assert (
        sorted(share.names(ROOT))
        == sorted(share.names(ROOT, plus=True))
        == [b"dir", b"link", b"new", b"pipe"]
    )
    (handle,) = struct.unpack_from("<Q", share.ask(OPENDIR, place, bytes(8)))
    for is_data in (0, 1):
        share.ask(FSYNCDIR, place, struct.pack("<QII", handle, is_data, 0))
    share.ask(RELEASEDIR, place, struct.pack("<QIIQ", handle, 0, 0, 0))
    share.ask(UNLINK, place, b"file\0")
    share.ask(RMDIR, ROOT, b"dir\0")
    for name in (b"link", b"pipe", b"new"):
        share.ask(UNLINK, ROOT, name + b"\0")
    assert os.listdir(shared) == []


def test_extended_attributes(share: Guest, shared: Path) -> None:
    """Extended attributes are set, read, listed and removed; those of what can have none are refused."""
    flags = share.mount()
    head = struct.pack("<IIII", 5, 0, 0, 0) if flags & SETXATTR_EXT else struct.pack("<II", 5, 0)
    share.create(ROOT, b"file", 0o644)
    share.ask(MKDIR, ROOT, struct.pack("<II", 0o755, 0) + b"dir\0")
    share.ask(SYMLINK, ROOT, b"link\0dir\0")
    for name in (b"file", b"dir"):
        inode = share.lookup(ROOT, name).inode
        share.ask(SETXATTR, inode, head + b"user.name\0value")
        assert share.ask(GETXATTR, inode, struct.pack("<II", 100, 0) + b"user.name\0") == b"value"
        assert share.ask(LISTXATTR, inode, struct.pack("<II", 100, 0)) == b"user.name\0"
        share.ask(REMOVEXATTR, inode, b"user.name\0")
    inode = share.lookup(ROOT, b"link").inode
    with refused():
        share.ask(SETXATTR, inode, head + b"user.name\0value")
    with refused():
        share.ask(GETXATTR, inode, struct.pack("<II", 100, 0) + b"user.name\0")
    with refused():
        share.ask(REMOVEXATTR, inode, b"user.name\0")
    share.ask(LISTXATTR, inode, struct.pack("<II", 100, 0))
    assert shared.exists()


def test_a_state_of_a_share(share: Guest) -> None:
    """The state of a share, with open files, can be written down and taken in again."""
    share.mount()
    share.create(ROOT, b"file", 0o644)
    share.names(ROOT)
    reader, writer = os.pipe()
    share.move_state(0, writer)
    os.close(writer)
    with open(reader, "rb") as file:
        state = file.read()
    assert share.moved()
    reader, writer = os.pipe()
    os.write(writer, state)
    os.close(writer)
    share.move_state(1, reader)
    os.close(reader)
    assert share.moved()
    assert share.lookup(ROOT, b"file").size == 0
