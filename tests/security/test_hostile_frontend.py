"""Device processes against a VMM that has been taken over and lies about everything it shares.

Such a VMM owns its devices, so a device may end, with a sentence. It must not crash, hang or grow. What a guest alone
can say is in test_fs_hostile.py and in the crates.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from support import vhost
from support.liars import ALL_PROTOCOL, DEVICES, DISK, is_alive, liar, started
from support.vhost import (
    INDIRECT,
    MEMORY,
    NEXT,
    QUEUE_BYTES,
    QUEUE_SIZE,
    USER_BASE,
    WRITABLE,
    Descriptor,
    DeviceProcess,
    Frontend,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: Of a block request: where its header, its status and its data are in the guest.
HEADER, STATUS, DATA = 0x10_0000, 0x20_0000, 0x30_0000
IN, OUT, DISCARD, ZEROES = 0, 1, 11, 13
F_DISCARD, F_ZEROES = 1 << 13, 1 << 14
DISKS = pytest.mark.parametrize("victim", ["disk", "disk-qcow2"], indirect=True)


def try_chains(frontend: Frontend, *chains: list[Descriptor]) -> None:
    """Offer requests made of these descriptors in the last queue, and see each come back."""
    queue = len(frontend.kicks) - 1
    for chain in chains:
        for index, descriptor in enumerate(chain):
            frontend.put_descriptor(index, descriptor, queue)
        frontend.offer(0, queue)
        frontend.wait(queue)


def test_chains_that_loop(victim: tuple[DeviceProcess, int]) -> None:
    """Descriptors that follow each other in a ring are followed so often and given back."""
    with liar(victim) as frontend:
        for flags in (NEXT, NEXT | WRITABLE):
            for length in (0, 1, 4096, 0xFFFFFFFF):
                one = [Descriptor(0x10_0000, length, flags, 0)]
                two = [Descriptor(0x10_0000, length, flags, 1), Descriptor(0x10_0000, length, flags, 0)]
                try_chains(frontend, one, two)
        table = struct.pack("<QIHH", 0x20_0000, 16, NEXT | WRITABLE, 0)
        frontend.memory[0x20_0000 : 0x20_0000 + len(table)] = table
        try_chains(frontend, [Descriptor(0x20_0000, 16, INDIRECT, 0)])
        # As many descriptors as a table can have, all of them the same buffer.
        table = struct.pack("<QIHH", 0x10_0000, 0xFFFFFFFF, NEXT | WRITABLE, 1) * 0x8000
        frontend.memory[0x20_0000 : 0x20_0000 + len(table)] = table
        try_chains(frontend, [Descriptor(0x20_0000, len(table), INDIRECT, 0)])
        assert is_alive(frontend)


def test_addresses_that_are_not_there(victim: tuple[DeviceProcess, int]) -> None:
    """Buffers and tables outside of all memory, at its very end and past the last address do no harm."""
    places = [MEMORY - 8, MEMORY, MEMORY + 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 4096, (1 << 64) - 1]
    with liar(victim) as frontend:
        for place in places:
            for length in (1, 16, 4096, 0xFFFFFFFF):
                for flags in (0, WRITABLE, INDIRECT, INDIRECT | NEXT, INDIRECT | WRITABLE):
                    try_chains(frontend, [Descriptor(place, length, flags, 0)])
        assert is_alive(frontend)


def test_buffers_on_top_of_each_other(victim: tuple[DeviceProcess, int]) -> None:
    """Buffers that lie on each other, on the descriptors and on the rings themselves do no harm."""
    queue = victim[1] - 1
    with liar(victim) as frontend:
        rings = queue * QUEUE_BYTES
        chain = [Descriptor(0x10_0000, 80, NEXT, 1), Descriptor(0x10_0000, 4096, WRITABLE | NEXT, 2)]
        chain.append(Descriptor(0x10_0010, 4096, WRITABLE, 0))
        try_chains(frontend, chain, chain)
        for start in (rings, rings + 0x1000, rings + 0x1004):
            frontend.put_descriptor(0, Descriptor(0x10_0000, 80, NEXT, 1), queue)
            frontend.put_descriptor(1, Descriptor(start, 4096, WRITABLE, 0), queue)
            frontend.offer(0, queue)
        assert is_alive(frontend)


def test_heads_used_again_and_indexes_that_jump(victim: tuple[DeviceProcess, int]) -> None:
    """The same head a hundred times, heads that do not exist, and indexes far ahead and behind do no harm."""
    queue = victim[1] - 1
    with liar(victim) as frontend:
        frontend.put_descriptor(0, Descriptor(0x10_0000, 16, WRITABLE, 0), queue)
        for _ in range(3):
            for index in range(QUEUE_SIZE):
                frontend.put_available(index, 0, queue)
            for _ in range(QUEUE_SIZE):
                frontend.offer(0, queue)
            frontend.wait(queue)
        for head in (QUEUE_SIZE - 1, QUEUE_SIZE, 0x8000, 0xFFFF):
            frontend.offer(head, queue)
            assert is_alive(frontend)
        for jump in (1, QUEUE_SIZE, QUEUE_SIZE + 1, 0x7FFF, 0x8000, 0xFFFF):
            frontend.set_available(frontend.used(queue) + jump, queue)
            frontend.kick(queue)
            assert is_alive(frontend)


@pytest.mark.parametrize("bit", [0, 5, 24, 27, 31, 33, 34, 40, 63])
def test_features_that_were_not_offered(victim: tuple[DeviceProcess, int], bit: int) -> None:
    """A feature that was not offered ends the connection with a sentence."""
    with liar(victim) as frontend:
        frontend.send(vhost.SET_FEATURES, struct.pack("<Q", vhost.VERSION_1 | 1 << bit))
        assert not is_alive(frontend)


def test_protocol_features_that_were_not_offered(victim: tuple[DeviceProcess, int]) -> None:
    """A protocol feature that was not offered ends the connection with a sentence."""
    with liar(victim) as frontend:
        frontend.send(vhost.SET_PROTOCOL_FEATURES, struct.pack("<Q", (1 << 64) - 1))
        assert not is_alive(frontend)


def regions(*places: tuple[int, int, int, int]) -> bytes:
    """Return SET_MEM_TABLE's payload: guest address, size, address of the frontend, offset of each."""
    return struct.pack("<II", len(places), 0) + b"".join(struct.pack("<QQQQ", *place) for place in places)


WRONG_MEMORY = {
    "none": [],
    "empty": [(0, 0, USER_BASE, 0)],
    "too-long": [(0, MEMORY + 4096, USER_BASE, 0)],
    "past-its-end": [(0, MEMORY, USER_BASE, 4096)],
    "offset-past-all": [(0, 4096, USER_BASE, (1 << 64) - 4096)],
    "end-past-all": [((1 << 64) - 4096, 8192, USER_BASE, 0)],
    "larger-than-all": [(0, (1 << 64) - 1, 0, 0)],
    "overlap": [(0, MEMORY, USER_BASE, 0), (4096, MEMORY, USER_BASE + MEMORY, 0)],
    "overlap-in-the-frontend": [(0, MEMORY, USER_BASE, 0), (MEMORY, MEMORY, USER_BASE + 4096, 0)],
    "askew": [(0, 4096, USER_BASE, 17)],
}


@pytest.mark.parametrize("places", WRONG_MEMORY.values(), ids=WRONG_MEMORY)
def test_memory_that_cannot_be(
    victim: tuple[DeviceProcess, int], places: list[tuple[int, int, int, int]]
) -> None:
    """Regions that are empty, too long, outside of their file or on top of each other end the connection."""
    with liar(victim) as frontend:
        frontend.send(vhost.SET_MEM_TABLE, regions(*places), [frontend.memory_fd] * len(places))
        assert not is_alive(frontend)


def test_memory_that_is_no_file(victim: tuple[DeviceProcess, int]) -> None:
    """A pipe, a socket, a directory or a device in the place of memory ends the connection."""
    with liar(victim) as frontend:
        fd = os.open("/dev/zero", os.O_RDWR)
        frontend.send(vhost.SET_MEM_TABLE, regions((0, 4096, USER_BASE, 0)), [fd])
        os.close(fd)
        assert not is_alive(frontend)


def test_memory_that_shrinks(victim: tuple[DeviceProcess, int]) -> None:
    """Memory that is taken away while it is used ends the device with a sentence and not with a crash."""
    running, queues = victim
    with liar(victim) as frontend:
        os.ftruncate(frontend.memory_fd, 0)
        frontend.kick(queues - 1)
        assert not frontend.receive()
    assert running.process.returncode == 3


@pytest.mark.parametrize("kind", DEVICES)
def test_memory_that_shrinks_would_be_a_crash(tmp_path: Path, hostile: Path, kind: str) -> None:
    """Without its handler of SIGBUS the same device is killed by that signal and says nothing."""
    with started(kind, tmp_path, "--no-bus-handler", built_in=hostile) as (running, queues):
        frontend = Frontend(running.connection, queues)
        frontend.shake_hands(0, ALL_PROTOCOL)
        os.ftruncate(frontend.memory_fd, 0)
        frontend.kick(queues - 1)
        assert not frontend.receive()
        frontend.close()
        status, said = running.ended()
    assert (status, said) == (-signal.SIGBUS, "")


def event_flags(fd: int) -> int:
    """Return a descriptor's flags."""
    return fcntl.fcntl(fd, fcntl.F_GETFL)


@pytest.mark.parametrize("request_number", [vhost.SET_VRING_KICK, vhost.SET_VRING_CALL, vhost.SET_VRING_ERR])
@pytest.mark.parametrize("kind", ["pipe", "file", "socket", "none", "two"])
def test_descriptors_that_are_no_events(
    victim: tuple[DeviceProcess, int], request_number: int, kind: str
) -> None:
    """Anything but one event descriptor where one belongs ends the connection."""
    reader, writer = os.pipe()
    ours, theirs = socket.socketpair()
    with liar(victim) as frontend, ours, theirs:
        fds = {
            "pipe": [writer],
            "file": [frontend.memory_fd],
            "socket": [theirs.fileno()],
            "none": [],
            "two": [frontend.calls[0], frontend.calls[0]],
        }
        frontend.send(request_number, struct.pack("<Q", 0), fds[kind])
        assert not is_alive(frontend)
    os.close(reader)
    os.close(writer)


def test_events_that_would_block(victim: tuple[DeviceProcess, int]) -> None:
    """A counter that is full and a kick that somebody else takes do not stop the device."""
    queue = victim[1] - 1
    with liar(victim) as frontend:
        os.eventfd_write(frontend.calls[queue], (1 << 64) - 2)
        try_chains(frontend, [Descriptor(0x10_0000, 16, WRITABLE, 0)])
        assert event_flags(frontend.calls[queue]) & os.O_NONBLOCK
        for _ in range(100):
            frontend.kick(queue)
        assert is_alive(frontend)


def test_descriptors_nobody_asked_for(victim: tuple[DeviceProcess, int]) -> None:
    """Descriptors beside a message that takes none end the connection, and are not kept."""
    with liar(victim) as frontend:
        frontend.send(vhost.SET_OWNER, b"", [frontend.memory_fd] * 8)
        assert not is_alive(frontend)


@pytest.mark.parametrize("index", [2, 255, 0x8000, 0xFFFFFFFF])
def test_queues_that_do_not_exist(victim: tuple[DeviceProcess, int], index: int) -> None:
    """A message about a queue the device does not have ends the connection."""
    with liar(victim) as frontend:
        frontend.send(vhost.SET_VRING_NUM, struct.pack("<II", index, QUEUE_SIZE))
        assert not is_alive(frontend)


@pytest.mark.parametrize("size", [0, 3, 100, 0x10000, 0xFFFFFFFF])
def test_sizes_that_no_queue_has(victim: tuple[DeviceProcess, int], size: int) -> None:
    """A size that is no power of two or too large ends the connection."""
    with liar(victim) as frontend:
        frontend.send(vhost.SET_VRING_NUM, struct.pack("<II", 0, size))
        assert not is_alive(frontend)


@pytest.mark.parametrize("place", [0, USER_BASE - 16, USER_BASE + MEMORY, (1 << 64) - 16])
def test_rings_outside_of_memory(victim: tuple[DeviceProcess, int], place: int) -> None:
    """Rings that begin outside of the memory end the connection."""
    with liar(victim) as frontend:
        frontend.send(vhost.SET_VRING_ADDR, struct.pack("<IIQQQQ", 0, 0, place, place, place, 0))
        assert not is_alive(frontend)


def test_rings_that_end_outside_of_memory(victim: tuple[DeviceProcess, int]) -> None:
    """Rings that begin in the memory and end outside of it do no harm."""
    queue = victim[1] - 1
    with liar(victim) as frontend:
        end = USER_BASE + MEMORY - 16
        frontend.send(vhost.SET_VRING_ADDR, struct.pack("<IIQQQQ", queue, 0, end, end, end, 0))
        frontend.memory[MEMORY - 16 :] = b"\x07" * 16
        frontend.kick(queue)
        assert is_alive(frontend)


def test_messages_in_the_wrong_order(victim: tuple[DeviceProcess, int]) -> None:
    """Queues that are stopped, started without memory, enabled twice and kicked when stopped do no harm."""
    queue = victim[1] - 1
    with liar(victim) as frontend:
        for _ in range(50):
            frontend.send(vhost.SET_VRING_KICK, struct.pack("<Q", queue), [frontend.kicks[queue]])
            frontend.send(vhost.SET_VRING_ENABLE, struct.pack("<II", queue, 1))
            frontend.kick(queue)
            frontend.send(vhost.GET_VRING_BASE, struct.pack("<II", queue, 0))
            assert frontend.receive()
            frontend.kick(queue)
        for message in (vhost.SET_OWNER, vhost.RESET_OWNER, vhost.RESET_DEVICE, vhost.SET_OWNER):
            frontend.send(message)
        assert is_alive(frontend)


@pytest.mark.parametrize("size", [0, 1, 4096, 1 << 40])
def test_a_log_that_is_too_small(victim: tuple[DeviceProcess, int], size: int) -> None:
    """A log that does not cover the memory is written as far as it goes; one outside of its file is refused."""
    with liar(victim) as frontend:
        log = os.memfd_create("log")
        os.ftruncate(log, 1)
        frontend.send(vhost.SET_LOG_BASE, struct.pack("<QQ", size, 0), [log])
        os.close(log)
        if size != 1:
            assert not is_alive(frontend)
            return
        assert frontend.receive()
        features = vhost.VERSION_1 | vhost.PROTOCOL_FEATURES | vhost.LOG_ALL
        frontend.send(vhost.SET_FEATURES, struct.pack("<Q", features))
        try_chains(frontend, [Descriptor(MEMORY - 4096, 4096, WRITABLE, 0)])
        assert is_alive(frontend)


def half_a_message(frontend: Frontend, _: random.Random) -> None:
    """Begin a message and leave it at that."""
    frontend.send_raw(struct.pack("<III", vhost.SET_FEATURES, 1, 8) + b"\0\0")


def noise(frontend: Frontend, chance: random.Random) -> None:
    """Send bytes that are no message."""
    frontend.send_raw(chance.randbytes(chance.randrange(1, 300)))


def a_huge_message(frontend: Frontend, _: random.Random) -> None:
    """Announce four gigabytes."""
    frontend.send_raw(struct.pack("<III", vhost.SET_FEATURES, 1, 0xFFFFFFFF) + bytes(4096))


def random_messages(frontend: Frontend, chance: random.Random) -> None:
    """Send a message of any kind, with plausible and with absurd numbers."""
    numbers = [0, 1, 2, 8, 128, 4096, MEMORY, USER_BASE, (1 << 32) - 1, (1 << 63), (1 << 64) - 1]
    request = chance.randrange(45)
    words = [chance.choice(numbers) for _ in range(chance.randrange(6))]
    fds = [chance.choice([frontend.memory_fd, frontend.calls[0]]) for _ in range(chance.randrange(3))]
    frontend.send(request, struct.pack(f"<{len(words)}Q", *words), fds, flags=chance.choice([1, 1, 9, 5, 0]))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tell", [half_a_message, noise, a_huge_message, random_messages])
def test_messages_that_are_none(
    victim: tuple[DeviceProcess, int], tell: Callable[[Frontend, random.Random], None], seed: int
) -> None:
    """Noise, halves of messages, lengths beyond reason and random messages end the connection at worst."""
    chance = random.Random(seed)
    with liar(victim) as frontend:
        try:
            for _ in range(50):
                tell(frontend, chance)
        except (BrokenPipeError, ConnectionResetError):
            return


def ask_disk(frontend: Frontend, kind: int, sector: int, *parts: tuple[int, int, int]) -> int:
    """Offer a block request with these parts (address, length, flags) and return its status."""
    frontend.memory[HEADER : HEADER + 16] = struct.pack("<IIQ", kind, 0, sector)
    frontend.memory[STATUS] = 0xEE
    chain = [
        Descriptor(address, length, flags | NEXT, index + 1)
        for index, (address, length, flags) in enumerate([(HEADER, 16, 0), *parts])
    ]
    try_chains(frontend, [*chain, Descriptor(STATUS, 1, WRITABLE, 0)])
    return frontend.memory[STATUS]


@DISKS
def test_block_requests_outside_of_the_disk(victim: tuple[DeviceProcess, int], tmp_path: Path) -> None:
    """What is not wholly on the disk is refused, whatever is asked, and the file stays as it is."""
    before = (tmp_path / "image").read_bytes()
    end = DISK // 512
    with liar(victim, features=F_DISCARD | F_ZEROES) as frontend:
        for sector in (end - 1, end, 1 << 40, (1 << 55) - 1, 1 << 55, (1 << 64) - 2, (1 << 64) - 1):
            assert ask_disk(frontend, IN, sector, (DATA, 1024, WRITABLE)) == 1
            assert ask_disk(frontend, OUT, sector, (DATA, 1024, 0)) == 1
            for kind in (DISCARD, ZEROES):
                for count in (2, 1 << 18, (1 << 32) - 1):
                    frontend.memory[DATA : DATA + 16] = struct.pack("<QII", sector, count, 0)
                    assert ask_disk(frontend, kind, 0, (DATA, 16, 0)) == 1
        assert is_alive(frontend)
    assert (tmp_path / "image").read_bytes() == before


@DISKS
def test_block_requests_of_absurd_lengths(victim: tuple[DeviceProcess, int], tmp_path: Path) -> None:
    """Lengths that are no sectors, that no memory has, or that add up to too much are refused."""
    before = (tmp_path / "image").read_bytes()
    with liar(victim) as frontend:
        for kind, flags in ((IN, WRITABLE), (OUT, 0)):
            for length in (1, 511, 513, DISK + 512, MEMORY, 0x7FFF_FE00, 0xFFFF_FE00, 0xFFFF_FFFF):
                assert ask_disk(frontend, kind, 0, (DATA, length, flags)) == 1
            assert ask_disk(frontend, kind, 0, *[(DATA, 8 << 20, flags)] * 100) == 1
        assert is_alive(frontend)
    assert (tmp_path / "image").read_bytes() == before


@DISKS
def test_block_requests_on_top_of_themselves(victim: tuple[DeviceProcess, int]) -> None:
    """Data that is read onto the request's own header, status, descriptors and rings does no harm."""
    with liar(victim) as frontend:
        for start in (HEADER, STATUS - 511, STATUS):
            assert ask_disk(frontend, IN, 0, (start, 512, WRITABLE)) == 0
        # The same buffer a hundred times, read from and written to.
        assert ask_disk(frontend, IN, 0, *[(DATA, 512, WRITABLE)] * 100) == 0
        assert ask_disk(frontend, OUT, 0, *[(DATA, 512, 0)] * 100) == 0
        # Something to read behind something to write.
        assert ask_disk(frontend, IN, 0, (DATA, 512, WRITABLE), (DATA, 512, 0)) == 1
        frontend.memory[HEADER : HEADER + 16] = bytes(16)
        for start in (0, 0x1000, 0x2000):
            frontend.put_descriptor(0, Descriptor(HEADER, 16, NEXT, 1), 0)
            frontend.put_descriptor(1, Descriptor(start, 512, WRITABLE | NEXT, 2), 0)
            frontend.put_descriptor(2, Descriptor(STATUS, 1, WRITABLE, 0), 0)
            frontend.offer(0, 0)
            assert is_alive(frontend)
