"""The file server against a guest that does not play by the rules: it answers the next honest request, always."""

from __future__ import annotations

import os
import random
import struct
from typing import TYPE_CHECKING

import pytest

from support.vhost import EVENT_IDX, Descriptor
from support.virtiofs import (
    BATCH_FORGET,
    CREATE,
    FORGET,
    GETATTR,
    GETXATTR,
    INIT,
    LINK,
    LOOKUP,
    MKDIR,
    MKNOD,
    READ,
    READDIR,
    READDIRPLUS,
    RENAME,
    REQUESTS,
    RMDIR,
    ROOT,
    SYMLINK,
    UNLINK,
    WRITE,
    Guest,
    in_header,
    refused,
    server,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ALONE = ["unshare", "--user", f"--map-user={os.geteuid()}", f"--map-group={os.getegid()}"]
KINDS = {
    "tree": ("--cache", "forever", "--ids", "squash-root"),
    "share": ("--cache", "coherent", "--ids", "caller:1000:1000"),
}
EVERY_OPCODE = [*range(1, 6), *range(8, 19), *range(20, 53), 4096, 0, 0xFFFFFFFF]
NEXT, WRITABLE, INDIRECT = 1, 2, 4


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Provide a directory to serve, with something beside it that is not served."""
    path = tmp_path / "outer" / "shared"
    path.mkdir(parents=True)
    (path / "file").write_text("text")
    (path / "dir").mkdir()
    (path.parent / "secret").write_text("secret")
    return path


@pytest.fixture(params=KINDS)
def guest(request: pytest.FixtureRequest, tmp_path: Path, shared: Path) -> Iterator[Guest]:
    """Provide a guest of each kind of server; the server must live until it disconnects."""
    words = KINDS[request.param]
    with server(tmp_path, shared, *words, wrapper=ALONE) as running, running.guest() as guest:
        guest.mount()
        yield guest
        guest.attributes(ROOT)


def test_requests_without_room_for_an_answer(guest: Guest) -> None:
    """A request of any kind with too little room for an answer is given back, and the next is answered."""
    for opcode in EVERY_OPCODE:
        for room in (0, 1, 15):
            guest.exchange(in_header(opcode, ROOT, 40 + 64) + bytes(64), room)
    guest.mount()
    guest.attributes(ROOT)


def test_requests_cut_short(guest: Guest) -> None:
    """A request of any kind that ends too early is refused, and the next is answered."""
    for opcode in EVERY_OPCODE:
        for length in (1, 39, 40, 41, 47, 60):
            guest.exchange((in_header(opcode, ROOT, length) + b"\x41" * 64)[:length], 4096)
    guest.mount()
    guest.attributes(ROOT)


@pytest.mark.parametrize("claimed", [0, 1, 39, 1 << 20, (1 << 32) - 1])
def test_lengths_that_lie(guest: Guest, claimed: int) -> None:
    """A head that claims another length than the request has does no harm."""
    for opcode in EVERY_OPCODE:
        guest.exchange(in_header(opcode, ROOT, claimed) + b"\x7f" * 200, 4096)
    guest.mount()
    guest.attributes(ROOT)


@pytest.mark.parametrize("seed", range(4))
def test_random_requests(guest: Guest, seed: int) -> None:
    """Thousands of random requests, of every kind and with plausible and with absurd numbers, do no harm."""
    chance = random.Random(seed)
    numbers = [0, 1, 2, 3, 16, 4095, 4096, 1 << 20, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1]
    for _ in range(3000):
        opcode = chance.choice(EVERY_OPCODE)
        words = [chance.choice(numbers) for _ in range(chance.randrange(12))]
        body = struct.pack(f"<{len(words)}Q", *words) + chance.randbytes(chance.randrange(40))
        body += chance.choice([b"", b"\0", b"file\0", b"dir\0dir2\0", b"../secret\0", b"/\0"])
        inode = chance.choice([0, ROOT, 2, 3, 4, chance.choice(numbers)])
        guest.exchange(in_header(opcode, inode, 40 + len(body)) + body, chance.choice([16, 128, 4096, 70000]))
    guest.mount()
    guest.attributes(ROOT)


def test_sizes_beyond_reason(guest: Guest) -> None:
    """A read, a listing or an attribute of gigabytes costs no gigabytes, and offsets past the end are the end."""
    inode = guest.lookup(ROOT, b"file").inode
    handle = guest.open(inode)
    for opcode in (READ, READDIR, READDIRPLUS, WRITE):
        for size in (1 << 20, (1 << 32) - 1):
            for offset in (0, 1 << 40, (1 << 64) - 1):
                for target in (inode, ROOT):
                    body = struct.pack("<QQIIQII", handle, offset, size, 0, 0, 0, 0)
                    guest.exchange(in_header(opcode, target, 40 + len(body)) + body, 4096)
    body = struct.pack("<II", (1 << 32) - 1, 0) + b"user.a\0"
    guest.exchange(in_header(GETXATTR, inode, 40 + len(body)) + body, 4096)
    count = struct.pack("<II", (1 << 32) - 1, 0)
    guest.exchange(in_header(BATCH_FORGET, 0, 48) + count, 0)
    guest.exchange(in_header(BATCH_FORGET, 0, 48) + count, 64)


def test_forgetting_what_is_in_use(guest: Guest) -> None:
    """The root cannot be forgotten, and what was forgotten too often is only unknown."""
    inode = guest.lookup(ROOT, b"file").inode
    for target in (inode, inode, 77, 0):
        guest.exchange(in_header(FORGET, target, 48) + struct.pack("<Q", (1 << 64) - 1), 0)
    with refused():
        guest.attributes(inode)
    assert guest.lookup(ROOT, b"file").size == 4


@pytest.mark.parametrize(
    "name", [b"..", b".", b"", b"../secret", b"../../secret", b"dir/../../secret", b"/etc"]
)
def test_names_that_lead_out(guest: Guest, shared: Path, name: bytes) -> None:
    """No request reaches anything outside of what is served by a name."""
    before = sorted(os.listdir(shared.parent))
    head = {
        LOOKUP: b"",
        MKDIR: struct.pack("<II", 0o755, 0),
        MKNOD: struct.pack("<IIII", 0o100644, 0, 0, 0),
        CREATE: struct.pack("<IIII", os.O_RDWR, 0o100644, 0, 0),
        LINK: struct.pack("<Q", 2),
        UNLINK: b"",
        RMDIR: b"",
    }
    for opcode, start in head.items():
        with refused():
            guest.ask(opcode, ROOT, start + name + b"\0")
    with refused():
        guest.ask(SYMLINK, ROOT, name + b"\0/etc\0")
    for pair in ((name, b"moved"), (b"file", name)):
        with refused():
            guest.ask(RENAME, ROOT, struct.pack("<Q", ROOT) + b"\0".join(pair) + b"\0")
    assert sorted(os.listdir(shared.parent)) == before
    assert (shared.parent / "secret").read_text() == "secret"
    assert (shared / "file").read_text() == "text"


def test_links_are_not_followed(guest: Guest, shared: Path) -> None:
    """A link that leads out of what is served is told as a link; nothing behind it is."""
    os.symlink("../secret", shared / "out")
    os.symlink("/etc", shared / "etc")
    for name in (b"out", b"etc"):
        inode = guest.lookup(ROOT, name).inode
        with refused():
            guest.lookup(inode, b"passwd")
        with refused():
            guest.read(inode, guest.open(inode), 100)


@pytest.mark.parametrize("mode", [0o020666, 0o060666])
def test_devices_cannot_be_made(guest: Guest, shared: Path, mode: int) -> None:
    """A device cannot be made on the host."""
    with refused():
        guest.ask(MKNOD, ROOT, struct.pack("<IIII", mode, 0x103, 0, 0) + b"device\0")
    assert not (shared / "device").exists()


def test_chains_that_lead_nowhere(guest: Guest) -> None:
    """Descriptors outside of memory, in a loop, of no length or indirect into nothing do no harm."""
    far, huge = 1 << 40, (1 << 32) - 1
    chains = [
        [Descriptor(far, 64, 0, 0)],
        [Descriptor(0x10_0000, huge, 0, 0)],
        [Descriptor((1 << 64) - 8, 64, 0, 0)],
        [Descriptor(0x10_0000, 0, 0, 0)],
        [Descriptor(0x10_0000, 40, NEXT, 0)],
        [Descriptor(0x10_0000, 40, NEXT, 1), Descriptor(0x40_0000, 64, NEXT | WRITABLE, 0)],
        [Descriptor(0x10_0000, 40, NEXT, 0xFFFF)],
        [Descriptor(0x40_0000, 64, NEXT | WRITABLE, 1), Descriptor(0x10_0000, 40, 0, 0)],
        [Descriptor(far, 64, INDIRECT, 0)],
        [Descriptor(0x10_0000, 7, INDIRECT, 0)],
        [Descriptor(0x10_0000, 40, NEXT, 1), Descriptor(far, 4096, WRITABLE, 0)],
    ]
    for opcode in (GETATTR, READ, LOOKUP, INIT):
        for chain in chains:
            guest.memory[0x10_0000 : 0x10_0000 + 40] = in_header(opcode, ROOT, 40)
            for index, descriptor in enumerate(chain):
                guest.put_descriptor(index, descriptor, REQUESTS)
            guest.offer(0, REQUESTS)
            guest.wait(REQUESTS)
    guest.mount()


@pytest.mark.parametrize("features", [0, EVENT_IDX])
@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_ring(tmp_path: Path, shared: Path, kind: str, features: int) -> None:
    """A ring whose index jumps, or whose heads do not exist, stops nothing once it is mended."""
    with (
        server(tmp_path, shared, *KINDS[kind], wrapper=ALONE) as running,
        running.guest(features) as guest,
    ):
        guest.mount()
        mended = guest.used(REQUESTS)
        for jump in (200, 30000, 0xFFFF):
            guest.set_available(mended + jump, REQUESTS)
            guest.kick(REQUESTS)
        guest.set_available(mended, REQUESTS)
        guest.attributes(ROOT)
        guest.offer(0xFFFF, REQUESTS)
        guest.kick(REQUESTS)
        assert running.process.poll() is None
