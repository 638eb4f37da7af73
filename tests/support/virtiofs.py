"""A VMM and a guest kernel as far as a file server sees them: vhost-user, one virtqueue, FUSE requests."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from cloche.host.tools import require_own_binary
from support.vhost import (
    CHECK_DEVICE_STATE,
    NEXT,
    PATIENCE_S,
    SET_DEVICE_STATE_FD,
    WRITABLE,
    Descriptor,
    Frontend,
    traced,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

ROOT = 1
#: FUSE opcodes (include/uapi/linux/fuse.h).
LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK, MKNOD, MKDIR, UNLINK = 1, 2, 3, 4, 5, 6, 8, 9, 10
RMDIR, RENAME, LINK, OPEN, READ, WRITE, RELEASE, GETXATTR, INIT = 11, 12, 13, 14, 15, 16, 18, 22, 26
OPENDIR, READDIR, CREATE, BATCH_FORGET, READDIRPLUS = 27, 28, 35, 42, 44

#: The queue of ordinary requests.
REQUESTS = 1
#: Where requests and answers are in the guest's memory.
_REQUEST = 0x10_0000
_ANSWER = 0x40_0000


class Entry(NamedTuple):
    """What a lookup tells."""

    inode: int
    lifetime_s: float
    ino: int
    size: int
    mode: int
    owner: tuple[int, int]


def in_header(opcode: int, inode: int, length: int, *, uid: int = 0) -> bytes:
    """A FUSE request's head; ``length`` is what it claims its whole length to be."""
    return struct.pack("<IIQQIIIHH", length, opcode, 4711, inode, uid, uid, 1, 0, 0)


class Guest(Frontend):
    """A guest connected to a file server. Requests go through queue 1, one at a time."""

    def __init__(self, connection: socket.socket, features: int = 0, protocol: int = 0) -> None:
        super().__init__(connection, queues=2)
        self.shake_hands(features, protocol)

    def exchange(self, request: bytes, room: int) -> bytes:
        """Send bytes as a request with ``room`` bytes for the answer; return the answer."""
        self.memory[_REQUEST : _REQUEST + len(request)] = request
        has_room = room > 0
        self.put_descriptor(0, Descriptor(_REQUEST, len(request), NEXT if has_room else 0, 1), REQUESTS)
        self.put_descriptor(1, Descriptor(_ANSWER, room, WRITABLE, 0), REQUESTS)
        self.offer(0, REQUESTS)
        length = self.wait(REQUESTS)
        return self.memory[_ANSWER : _ANSWER + length]

    # The server's state

    def move_state(self, direction: int, fd: int) -> None:
        """Have the state written to a descriptor (0) or read from it (1)."""
        answer = self.query(SET_DEVICE_STATE_FD, struct.pack("<II", direction, 0), [fd])
        assert answer == 0x100

    def moved(self) -> bool:
        """Whether that went well."""
        return self.query(CHECK_DEVICE_STATE) == 0

    # FUSE

    def ask(self, opcode: int, inode: int, body: bytes = b"", *, room: int = 4096, uid: int = 0) -> bytes:
        """Send a request and return its answer without the head.

        Raises:
            OSError: The server refused.
        """
        answer = self.exchange(in_header(opcode, inode, 40 + len(body), uid=uid) + body, room)
        length, error, unique = struct.unpack_from("<IiQ", answer)
        assert (length, unique) == (len(answer), 4711)
        if error:
            raise OSError(-error, os.strerror(-error))
        return answer[16:]

    def mount(self) -> int:
        """Begin a FUSE session as Linux 6.12 does; return the flags the server wants."""
        flags = 0x73FF_FFFB  # everything but POSIX locks and what is reserved, the second word included
        body = struct.pack("<IIIII", 7, 41, 1 << 17, flags, 0) + bytes(44)
        return int(struct.unpack_from("<I", self.ask(INIT, 0, body), 12)[0])

    def lookup(self, parent: int, name: bytes) -> Entry:
        """Look a name up."""
        return parse_entry(self.ask(LOOKUP, parent, name + b"\0"))

    def walk(self, path: bytes) -> Entry:
        """Look a path up, from the root."""
        inode = ROOT
        entry = None
        for name in path.strip(b"/").split(b"/"):
            entry = self.lookup(inode, name)
            inode = entry.inode
        assert entry is not None
        return entry

    def forget(self, inode: int, count: int = 1) -> None:
        """Forget lookups (there is no answer)."""
        assert self.exchange(in_header(FORGET, inode, 48) + struct.pack("<Q", count), 0) == b""

    def attributes(self, inode: int) -> bytes:
        """Ask for attributes."""
        return self.ask(GETATTR, inode, bytes(16))

    def open(self, inode: int, flags: int = os.O_RDONLY) -> int:
        """Open a file; 0 from a server that opens nothing."""
        try:
            return int(struct.unpack_from("<Q", self.ask(OPEN, inode, struct.pack("<II", flags, 0)))[0])
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            return 0

    def read(self, inode: int, handle: int, size: int, offset: int = 0) -> bytes:
        """Read from an open file."""
        body = struct.pack("<QQIIQII", handle, offset, size, 0, 0, 0, 0)
        return self.ask(READ, inode, body, room=16 + size)

    def write(self, inode: int, handle: int, data: bytes, offset: int = 0) -> int:
        """Write to an open file; return how much was written."""
        body = struct.pack("<QQIIQII", handle, offset, len(data), 0, 0, 0, 0) + data
        return int(struct.unpack_from("<I", self.ask(WRITE, inode, body))[0])

    def create(self, parent: int, name: bytes, mode: int) -> tuple[Entry, int]:
        """Create a file and open it for writing."""
        body = struct.pack("<IIII", os.O_RDWR | os.O_CREAT, mode | 0o100000, 0, 0) + name + b"\0"
        answer = self.ask(CREATE, parent, body)
        return parse_entry(answer), int(struct.unpack_from("<Q", answer, 128)[0])

    def names(self, inode: int, *, plus: bool = False) -> list[bytes]:
        """List a directory, without ``.`` and ``..``."""
        handle = 0
        try:
            handle = struct.unpack_from("<Q", self.ask(OPENDIR, inode, bytes(8)))[0]
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
        found: list[bytes] = []
        offset = 0
        while True:
            body = struct.pack("<QQIIQII", handle, offset, 4096, 0, 0, 0, 0)
            answer = self.ask(READDIRPLUS if plus else READDIR, inode, body, room=16 + 4096)
            if not answer:
                return [name for name in found if name not in {b".", b".."}]
            place = 0
            while place < len(answer):
                place += 128 if plus else 0
                _, offset, length, _ = struct.unpack_from("<QQII", answer, place)
                found.append(answer[place + 24 : place + 24 + length])
                place += (24 + length + 7) & ~7


@contextmanager
def refused(*numbers: int) -> Iterator[None]:
    """Expect that the server refuses what is asked in the block, with one of these errors if any are given."""
    caught: OSError | None = None
    try:
        yield
    except OSError as error:
        caught = error
    assert caught is not None, "the server did not refuse"
    assert not numbers or caught.errno in numbers, caught


def parse_entry(answer: bytes) -> Entry:
    """Take a fuse_entry_out apart."""
    inode, _, lifetime, _, lifetime_ns, _ = struct.unpack_from("<QQQQII", answer)
    ino, size = struct.unpack_from("<QQ", answer, 40)
    mode, _, uid, gid = struct.unpack_from("<IIII", answer, 40 + 60)
    return Entry(inode, lifetime + lifetime_ns / 1e9, ino, size, mode, (uid, gid))


class Server(NamedTuple):
    """A running file server and where it listens."""

    process: subprocess.Popen[bytes]
    path: Path

    def open_fds(self) -> int:
        """How many descriptors it has."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    @contextmanager
    def guest(self, features: int = 0) -> Iterator[Guest]:
        """Provide the one guest it serves."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self.path))
        guest = Guest(connection, features)
        try:
            yield guest
        finally:
            guest.close()


@contextmanager
def server(directory: Path, root: Path | str, *words: str, wrapper: Sequence[str] = ()) -> Iterator[Server]:
    """Provide a file server that serves ``root``; it must end by itself, with status 0, when its guest is gone.

    Args:
        directory: Where its socket is put.
        root: What it serves.
        words: Its further arguments.
        wrapper: A program, with its arguments, that executes it.
    """
    path = directory / "fs.sock"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        argv = [
            *wrapper,
            *traced("cloche-fs"),
            require_own_binary("cloche-fs"),
            "--fd",
            str(listener.fileno()),
        ]
        process = subprocess.Popen([*argv, "--root", str(root), *words], pass_fds=[listener.fileno()])
    try:
        yield Server(process, path)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
