"""A profile as a stream: what goes in comes out, and what is wrong with one is found."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.errors import ProfileError
from cloche.host import profile_archive
from cloche.host.profile_archive import MAGIC, ArchiveReader, Head, write_archive

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 8 << 20
SETTINGS = b'memory = "1G"\n'


@contextmanager
def disk_file(content: bytes | None = None) -> Iterator[int]:
    """Provide a disk in memory."""
    fd = os.memfd_create("disk")
    try:
        if content is not None:
            os.pwrite(fd, content, 0)
        yield fd
    finally:
        os.close(fd)


def nothing(done: int, total: int) -> None:
    """Show no progress."""
    assert done <= total


def exported(settings: bytes = SETTINGS, size: int = SIZE) -> tuple[bytes, bytes]:
    """Return a stream, and what its disk holds."""
    pick = random.Random(1)
    with disk_file() as fd:
        os.ftruncate(fd, size)
        for _ in range(20):
            os.pwrite(fd, pick.randbytes(3000) + bytes(1000), pick.randrange(size - 4000))
        out: list[bytes] = []
        write_archive("work", fd, settings, out.append, nothing)
        return b"".join(out), os.pread(fd, size, 0)


STREAM, CONTENT = exported()


def imported(stream: bytes) -> tuple[ArchiveReader, bytes, int]:
    """Return what becomes of a stream: its reader, the disk, and how much room that takes."""
    reader = ArchiveReader(io.BytesIO(stream).read)
    with disk_file() as fd:
        reader.restore(fd, nothing)
        return reader, os.pread(fd, SIZE * 2, 0), os.fstat(fd).st_blocks * 512


def test_what_is_exported_is_imported() -> None:
    """Settings, size and content come out again, and holes stay holes."""
    reader, content, used = imported(STREAM)
    assert content == CONTENT
    assert reader.settings == SETTINGS
    assert reader.head._replace(data_bytes=0) == Head("work", SIZE, 0)
    assert used < SIZE // 2
    assert len(STREAM) < used


def test_every_cut_is_noticed() -> None:
    """A stream that ends too early is never one, nor is one with something behind its end."""
    for length in (*range(200), *range(200, len(STREAM), 997), len(STREAM) - 1):
        with pytest.raises(ProfileError, match=r"ends too early|checksum"):
            imported(STREAM[:length])
    with pytest.raises(ProfileError, match="something follows its end"):
        imported(STREAM + b"\0")


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_every_wrong_bit_is_noticed(place: float, bit: int) -> None:
    """Wherever it is, the import fails with one sentence, and the disk never becomes larger than it says."""
    stream = bytearray(STREAM)
    stream[int(place * len(stream))] ^= 1 << bit
    with pytest.raises(ProfileError):
        imported(bytes(stream))


@given(rest=st.binary(max_size=200))
def test_noise_is_refused(rest: bytes) -> None:
    """Whatever comes behind the first line is an error and no traceback."""
    with pytest.raises(ProfileError):
        imported(MAGIC + rest)


def test_a_newer_version_says_so() -> None:
    """The format's number is in the first line."""
    with pytest.raises(ProfileError, match="newer version"):
        imported(STREAM.replace(b"profile 1", b"profile 2", 1))
    with pytest.raises(ProfileError, match="no exported profile"):
        imported(b"x" * 100)


def frames(*wanted: tuple[int, bytes]) -> bytes:
    """Return a stream with a right checksum of frames that need not make sense."""
    import hashlib

    stream = MAGIC + b"".join(struct.pack("<BI", kind, len(body)) + body for kind, body in wanted)
    end = hashlib.sha256(stream).digest()
    return stream + struct.pack("<BI", 4, len(end)) + end


def data(at: int, length: int, content: bytes) -> tuple[int, bytes]:
    """Return a frame of the disk."""
    return 3, struct.pack("<QI", at, length) + zlib.compress(content)


HEAD = (1, b'{"name": "work", "disk_bytes": 65536, "data_bytes": 9}')


@pytest.mark.parametrize(
    "wanted",
    [
        (),
        ((1, b"[]"),),
        ((1, b"[" * 4000),),
        ((1, b'{"name": "a", "disk_bytes": -512, "data_bytes": 0}'),),
        ((1, b'{"name": "a", "disk_bytes": 513, "data_bytes": 0}'),),
        ((1, b'{"name": "a", "disk_bytes": true, "data_bytes": 0}'),),
        ((1, b'{"name": 1, "disk_bytes": 512, "data_bytes": 0}'),),
        (HEAD, data(65536, 1, b"x")),
        (HEAD, data((1 << 64) - 1, 4096, b"x" * 4096)),
        (HEAD, data(0, 4096, b"x" * 4095)),
        (HEAD, data(0, 4096, b"x" * 4097)),
        (HEAD, data(4096, 512, b"x" * 512), data(0, 512, b"x" * 512)),
        (HEAD, data(0, 0, b"")),
        # A bomb: a thousand times what it says.
        (HEAD, data(0, 512, bytes(512 << 10))),
        (HEAD, (2, zlib.compress(bytes(2 << 20)))),
        (HEAD, (2, b"no zlib")),
        (HEAD, (2, zlib.compress(b"a")), (2, zlib.compress(b"b"))),
        (HEAD, HEAD),
        (HEAD, (9, b"")),
    ],
)
def test_what_makes_no_sense_is_refused(wanted: tuple[tuple[int, bytes], ...]) -> None:
    """A right checksum over wrong frames helps nobody."""
    with pytest.raises(ProfileError, match="cannot be imported"):
        imported(frames(*wanted))


def test_frames_that_make_sense_are_taken() -> None:
    """The same builder makes a stream that is right: what is refused above is refused for what it says."""
    reader, content, _ = imported(frames(HEAD, (2, zlib.compress(b"a")), data(512, 512, b"x" * 512)))
    assert content == b"x".rjust(513, b"\0") + b"x" * 511 + bytes(64512)
    assert reader.settings == b"a"


def test_a_frame_too_long_is_not_read() -> None:
    """What its length says is not believed before it is bounded."""
    asked = []
    stream = io.BytesIO(MAGIC + struct.pack("<BI", 1, 0xFFFF_FFFF))

    def read(count: int) -> bytes:
        asked.append(count)
        return stream.read(count)

    with pytest.raises(ProfileError, match="too long"):
        ArchiveReader(read)
    assert max(asked) <= profile_archive.PIECE


@pytest.mark.parametrize("count", [1, 7, 4096])
def test_a_pipe_that_gives_little_at_a_time_is_enough(count: int) -> None:
    """Short reads are no ends."""
    stream = io.BytesIO(STREAM)
    reader = ArchiveReader(lambda wanted: stream.read(min(count, wanted)))
    with disk_file() as fd:
        reader.restore(fd, nothing)
        assert os.pread(fd, SIZE, 0) == CONTENT
