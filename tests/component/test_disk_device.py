"""The disk's process with an honest frontend: its configuration, its log of written pages, requests done again."""

from __future__ import annotations

import os
import resource
import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from cloche.host import reverting, undo
from support import vhost
from support.disks import empty_qcow2
from support.vhost import NEXT, WRITABLE, Descriptor, DeviceProcess, Frontend

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEADER, STATUS, DATA = 0x10_0000, 0x20_0000, 0x30_0000
IN, OUT, FLUSH, GET_ID, DISCARD, ZEROES = 0, 1, 4, 8, 11, 13
F_FLUSH, F_DISCARD, F_ZEROES = 1 << 9, 1 << 13, 1 << 14
FEATURES = F_FLUSH | F_DISCARD | F_ZEROES


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Return a raw image of one MiB."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


@contextmanager
def machine(image: Path, *words: str, features: int = FEATURES, protocol: int = 0) -> Iterator[Frontend]:
    """Provide a disk with a frontend; its process must end with its frontend, with status 0."""
    with open(image, "r+b") as file, open_device(file.fileno(), *words) as running:
        frontend = Frontend(running.connection, 1)
        frontend.shake_hands(features, protocol)
        yield frontend
        frontend.close()
        assert running.process.wait(vhost.PATIENCE_S) == 0


@contextmanager
def open_device(
    fd: int, *words: str, most: int | None = None, undo_fd: int | None = None
) -> Iterator[DeviceProcess]:
    """Provide the disk's process with its image; its files may have ``most`` bytes."""
    os.set_inheritable(fd, True)
    fds = (fd,) if undo_fd is None else (fd, undo_fd)
    with vhost.device("cloche-disk", "--image-fd", str(fd), *words, pass_fds=fds) as running:
        if most is not None:
            resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (most, most))
        yield running


def offer(frontend: Frontend, kind: int, sector: int, data: bytes = b"", room: int = 0) -> None:
    """Offer one request as Linux makes them."""
    frontend.memory[HEADER : HEADER + 16] = struct.pack("<IIQ", kind, 0, sector)
    frontend.memory[DATA : DATA + len(data)] = data
    parts = [(HEADER, 16, 0)]
    if data or room:
        parts.append((DATA, len(data) or room, 0 if data else WRITABLE))
    parts.append((STATUS, 1, WRITABLE))
    for index, (address, length, flags) in enumerate(parts):
        following = NEXT if index + 1 < len(parts) else 0
        frontend.put_descriptor(index, Descriptor(address, length, flags | following, index + 1), 0)
    frontend.memory[STATUS] = 0xEE
    frontend.offer(0, 0)


def ask(
    frontend: Frontend, kind: int, sector: int = 0, data: bytes = b"", room: int = 0
) -> tuple[int, bytes]:
    """Carry out one request; returns the status and what was read."""
    offer(frontend, kind, sector, data, room)
    frontend.wait(0)
    return frontend.memory[STATUS], frontend.memory[DATA : DATA + room]


@pytest.mark.parametrize("features", [FEATURES, 0])
def test_the_whole_workload(image: Path, features: int) -> None:
    """Every kind of request does what it says, with and without flushes."""
    with machine(image, "--tag", "home", features=features) as frontend:
        assert ask(frontend, OUT, 8, b"x" * 4096) == (0, b"")
        assert ask(frontend, IN, 8, room=512) == (0, b"x" * 512)
        assert ask(frontend, FLUSH) == (0, b"")
        assert ask(frontend, GET_ID, room=20) == (0, b"home".ljust(20, b"\0"))
        has_ranges = 0 if features else 2
        assert ask(frontend, DISCARD, 0, struct.pack("<QII", 8, 1, 0))[0] == has_ranges
        assert ask(frontend, ZEROES, 0, struct.pack("<QII", 9, 1, 0))[0] == has_ranges
    kept = b"" if features else b"x" * 1024
    assert image.read_bytes()[4096:8192] == kept.rjust(1024, b"\0") + b"x" * 3072


def test_the_configuration_says_how_large_it_is(image: Path) -> None:
    """The capacity is told in sectors."""
    with machine(image, protocol=1 << vhost.P_CONFIG) as frontend:
        frontend.send(vhost.GET_CONFIG, struct.pack("<III", 0, 60, 0) + bytes(60))
        assert struct.unpack_from("<Q", frontend.receive(), 12) == ((1 << 20) // 512,)


@pytest.mark.parametrize("words", [("--grows",), ()], ids=["grows", "fixed"])
def test_who_connects_again_hears_that_the_disk_may_have_grown(image: Path, words: tuple[str, ...]) -> None:
    """Who has not asked for the configuration is told to, once, when the queue runs; only of a disk that can grow."""
    for asks in (False, True):
        with open(image, "r+b") as file, open_device(file.fileno(), *words) as running:
            frontend = Frontend(running.connection, 1)
            offered = frontend.query(vhost.GET_PROTOCOL_FEATURES)
            assert bool(offered >> vhost.P_BACKEND_REQ & 1) == bool(words)
            protocol = offered & (1 << vhost.P_BACKEND_REQ | 1 << vhost.P_CONFIG)
            frontend.send(vhost.SET_PROTOCOL_FEATURES, struct.pack("<Q", protocol))
            ear, mouth = socket.socketpair()
            with ear, mouth:
                if words:
                    frontend.send(vhost.SET_BACKEND_REQ_FD, fds=[mouth.fileno()])
                mouth.close()
                if asks:
                    frontend.send(vhost.GET_CONFIG, struct.pack("<III", 0, 60, 0) + bytes(60))
                    assert struct.unpack_from("<Q", frontend.receive(), 12) == ((1 << 20) // 512,)
                frontend.shake_hands(FEATURES, protocol)
                frontend.send(vhost.SET_VRING_ENABLE, struct.pack("<II", 0, 1))
                assert ask(frontend, IN, 8, room=512) == (0, bytes(512))
                frontend.close()
                assert running.process.wait(vhost.PATIENCE_S) == 0
                said = ear.recv(100)
                assert said == (struct.pack("<III", 2, 1, 0) if words and not asks else b"")


def test_what_is_written_into_the_guest_is_logged(image: Path) -> None:
    """With the log on, the pages of data, status and used ring are marked, of a failed request too; not with it off."""
    with machine(image, protocol=1 << vhost.P_LOG_SHMFD) as frontend:
        log = os.memfd_create("log")
        os.ftruncate(log, 4096)
        frontend.send(vhost.SET_LOG_BASE, struct.pack("<QQ", 4096, 0), [log])
        frontend.receive()

        def marked(wanted: int, kind: int, sector: int, room: int) -> list[int]:
            os.pwrite(log, bytes(4096), 0)
            frontend.send(
                vhost.SET_FEATURES, struct.pack("<Q", vhost.VERSION_1 | vhost.PROTOCOL_FEATURES | wanted)
            )
            frontend.query(vhost.GET_FEATURES)
            ask(frontend, kind, sector, room=room)
            # Marked before the process takes the next message.
            frontend.query(vhost.GET_FEATURES)
            bits = int.from_bytes(os.pread(log, 4096, 0), "little")
            return [page for page in range(4096 * 8) if bits >> page & 1]

        assert marked(vhost.LOG_ALL, IN, 0, 8192) == [2, STATUS >> 12, DATA >> 12, (DATA >> 12) + 1]
        assert marked(vhost.LOG_ALL, IN, 1 << 40, 512) == [2, STATUS >> 12, DATA >> 12]
        assert marked(0, IN, 0, 8192) == []
        os.close(log)


def test_a_request_in_flight_is_done_by_the_next_process(image: Path) -> None:
    """A process that was killed with a request taken leaves a note, and the next one with the note does it."""
    place = struct.pack("<QQHHI", 0, 0, 1, vhost.QUEUE_SIZE, 0)
    with open(image, "r+b") as file:
        with open_device(file.fileno()) as first:
            frontend = Frontend(first.connection, 1)
            frontend.shake_hands(FEATURES, 1 << vhost.P_INFLIGHT)
            frontend.send(vhost.GET_INFLIGHT_FD, place)
            answer, notes = frontend.receive_with_fd()
        # As it is when a process dies in the middle of the first request: version, size, and the mark of descriptor 0.
        os.pwrite(notes, struct.pack("<QHHHH", 0, 1, vhost.QUEUE_SIZE, 0, 0), 0)
        os.pwrite(notes, b"\1", 16)
        with open_device(file.fileno()) as second:
            again = Frontend(second.connection, 1)
            offer(again, OUT, 0, b"again" + bytes(507))
            again.shake_hands(FEATURES, 1 << vhost.P_INFLIGHT, inflight=(answer, notes))
            again.wait(0)
            assert again.memory[STATUS] == 0
            again.close()
        frontend.close()
        os.close(notes)
    assert image.read_bytes()[:5] == b"again"


def test_zeros_are_written_with_and_without_giving_space_up(image: Path) -> None:
    """Ranges become zeros whether their space may be given up or not, and the file keeps its size."""
    image.write_bytes(b"x" * (1 << 20))
    with machine(image) as frontend:
        for sector, flags in ((8, 0), (16, 1), (2040, 0)):
            assert ask(frontend, ZEROES, 0, struct.pack("<QII", sector, 8, flags))[0] == 0
    found = image.read_bytes()
    assert len(found) == 1 << 20
    assert [at for at in range(0, 1 << 20, 4096) if found[at : at + 4096] == bytes(4096)] == [
        4096,
        8192,
        2040 * 512,
    ]


def test_a_write_past_the_limit_of_files_is_an_error_of_the_guest(image: Path) -> None:
    """The guest is told what could not be written, and the process goes on."""
    with open(image, "r+b") as file, open_device(file.fileno(), most=512 << 10) as running:
        frontend = Frontend(running.connection, 1)
        frontend.shake_hands(FEATURES)
        assert ask(frontend, OUT, 1024, b"x" * 512)[0] == 1
        assert ask(frontend, OUT, 1023, b"x" * 512)[0] == 0
        assert ask(frontend, IN, 1024, room=512) == (0, bytes(512))
        frontend.close()
        assert running.process.wait(vhost.PATIENCE_S) == 0


@pytest.mark.parametrize("limit, is_enough", [(32768, True), (8192, False)])
def test_the_smallest_limit_has_room_for_the_notes(image: Path, limit: int, *, is_enough: bool) -> None:
    """The notes on requests in flight of a full queue fit into what the plan gives the smallest disk, not into less."""
    place = struct.pack("<QQHHI", 0, 0, 1, 1024, 0)
    with open(image, "r+b") as file, open_device(file.fileno(), most=limit) as running:
        frontend = Frontend(running.connection, 1)
        frontend.shake_hands(FEATURES, 1 << vhost.P_INFLIGHT)
        frontend.send(vhost.GET_INFLIGHT_FD, place)
        if is_enough:
            _, notes = frontend.receive_with_fd()
            assert os.fstat(notes).st_size >= 1024 * 16
            os.close(notes)
        else:
            assert frontend.receive() == b""
        frontend.close()


@pytest.mark.parametrize("cluster_bits", [9, 16], ids=["smallest-clusters", "usual-clusters"])
def test_a_qcow2_image_stays_within_its_bound(image: Path, cluster_bits: int) -> None:
    """An image that is filled, given up and filled again takes less than its bound without the spare room."""
    size, step = 8 << 20, 1 << 20
    image.write_bytes(empty_qcow2(size, cluster_bits))
    before = image.stat().st_size
    with machine(image, "--format", "qcow2") as frontend:
        for _ in range(2):
            for place in range(0, size, step):
                assert ask(frontend, OUT, place // 512, b"x" * step) == (0, b"")
            assert ask(frontend, DISCARD, 0, struct.pack("<QII", 0, size // 512, 0)) == (0, b"")
        for place in range(0, size, step):
            assert ask(frontend, OUT, place // 512, b"y" * step) == (0, b"")
        assert ask(frontend, FLUSH) == (0, b"")
    assert size < image.stat().st_size < before + size + size // 8


@pytest.mark.parametrize("dies", [False, True])
def test_what_was_there_before_is_kept(image: Path, tmp_path: Path, *, dies: bool) -> None:
    """A disk with an undo log does what it did, is killed and goes on, and the log gives the old content back."""
    before = b"x" * (1 << 18) + bytes(1 << 18) + b"y" * (1 << 19)
    image.write_bytes(before)
    begun = undo.begin(str(tmp_path), len(before))
    assert begun is not None
    with open(begun.path, "r+b") as log, open(image, "r+b") as file:
        words = ("--undo-fd", str(log.fileno()), "--undo-bytes", str(begun.most_bytes))
        for byte in (b"1", b"2") if dies else (b"3",):
            with open_device(file.fileno(), *words, undo_fd=log.fileno()) as running:
                frontend = Frontend(running.connection, 1)
                frontend.shake_hands(FEATURES)
                for sector in (0, 100, 700, 2047):
                    assert ask(frontend, OUT, sector, byte * 512) == (0, b"")
                assert ask(frontend, ZEROES, 0, struct.pack("<QII", 1024, 64, 1)) == (0, b"")
                assert ask(frontend, DISCARD, 0, struct.pack("<QII", 256, 500, 0)) == (0, b"")
                assert ask(frontend, FLUSH) == (0, b"")
                if dies:
                    running.process.kill()
                frontend.close()
                assert running.process.wait(vhost.PATIENCE_S) == (-9 if dies else 0)
    assert image.read_bytes() != before
    assert reverting.revert(str(tmp_path), str(image), None).number == 1
    assert image.read_bytes() == before
