"""One undo log: its bytes, strictly read (layer 3a). ``protocol/undo.md`` says what they mean.

The disk's process writes it, and may have been taken over by a guest: what is wrong with a log is an error and never a
guess, and a log that is right can change nothing but the disk it belongs to, within its size.
"""

from __future__ import annotations

import os
import struct
import time
import zlib

from cloche.errors import ProfileError
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Iterator

CLUSTER = 64 << 10
PAGE = 4096
_MAGIC, _VERSION = b"clocheUL", 1
#: Magic, version, cluster, disk, started, boot, ident, sealed, zeros; the checksum of all that.
_HEADER = struct.Struct("<8sIIQQ16s16sQ20s")
HEADER = _HEADER.size + 4
_RECORD = struct.Struct("<HHII")
RECORD = _RECORD.size + 4
_SAVED, _GIVEN_UP = 1, 2


class Header(Record):
    """What a log says of itself.

    Attributes:
        disk_bytes: How large the disk was when the run began.
        started_ns: When that was, in nanoseconds since the epoch.
        boot: Which start of the host.
        ident: Random; the records hang on it.
        sealed: The log's length, 0 while its run goes on.
    """

    disk_bytes: int
    started_ns: int
    boot: bytes
    ident: bytes
    sealed: int = 0


class Saved(Record):
    """What a cluster held.

    Attributes:
        cluster: Its number.
        mask: A bit for each of its pages that was not all zero.
        pages: Where in the log these are.
    """

    cluster: int
    mask: int
    pages: int


class LogError(ProfileError):
    """A log cannot be used."""


class GivenUpError(LogError):
    """The process gave it up while the run went on."""

    def __init__(self) -> None:
        super().__init__("more was changed than is kept")


def this_boot() -> bytes:
    """Return which start of the host this is."""
    with open("/proc/sys/kernel/random/boot_id", "rb") as file:
        return bytes.fromhex(file.read(64).decode("ascii").replace("-", ""))


def new_header(disk_bytes: int) -> Header:
    """Return the header of a log that begins now."""
    return Header(disk_bytes, time.time_ns(), this_boot(), os.urandom(16))


def encode_header(header: Header) -> bytes:
    """Return a header's bytes."""
    body = _HEADER.pack(
        *(_MAGIC, _VERSION, CLUSTER, header.disk_bytes, header.started_ns),
        *(header.boot, header.ident, header.sealed, bytes(20)),
    )
    return body + zlib.crc32(body).to_bytes(4, "little")


def read_header(fd: int) -> Header:
    """Return the header of an open log.

    Raises:
        LogError: It is none.
        OSError: It cannot be read.
    """
    data = os.pread(fd, HEADER, 0)
    if len(data) != HEADER or data[:8] != _MAGIC or zlib.crc32(data[:-4]).to_bytes(4, "little") != data[-4:]:
        raise LogError("its log is damaged")
    _, version, cluster, *fields, zero = _HEADER.unpack(data[:-4])
    if version != _VERSION:
        raise LogError(f"its log is of another version of cloche (format {version}, not {_VERSION})")
    if cluster != CLUSTER or any(zero):
        raise LogError("its log is damaged")
    return Header(*fields)


def write_header(fd: int, header: Header) -> None:
    """Write a header; whoever reads meanwhile sees the old or the new one.

    Raises:
        OSError: It cannot be written.
    """
    data = encode_header(header)
    if os.pwrite(fd, data, 0) != len(data):
        raise OSError(28, os.strerror(28))


def records(fd: int, header: Header, end: int, *, whole: bool) -> Iterator[Saved]:
    """Go through the records of a log, up to ``end``.

    Args:
        fd: The open log.
        header: Its header.
        end: Where it ends.
        whole: Whether the pages are checked, too, and the last record must be whole. Without that they are not read,
            and the beginning of a record at the end is overlooked.

    Raises:
        GivenUpError: It was.
        LogError: It is damaged.
        OSError: It cannot be read.
    """
    clusters = -(-header.disk_bytes // CLUSTER)
    seen = bytearray(-(-clusters // 8))
    chain = zlib.crc32(header.ident)
    at = HEADER
    while at < end:
        data = os.pread(fd, RECORD, at)
        if at + RECORD > end and not whole:
            return
        link = zlib.crc32(data[:12], zlib.crc32(chain.to_bytes(4, "little")))
        if len(data) != RECORD or data[12:] != link.to_bytes(4, "little"):
            raise LogError("its log is damaged")
        kind, mask, cluster, checksum = _RECORD.unpack(data[:12])
        if (kind, mask, cluster, checksum) == (_GIVEN_UP, 0, 0, 0) and at == HEADER:
            raise GivenUpError
        if kind != _SAVED or cluster >= clusters or seen[cluster // 8] >> cluster % 8 & 1:
            raise LogError("its log is damaged")
        pages = at + RECORD
        length = mask.bit_count() * PAGE
        if pages + length > end:
            if whole:
                raise LogError("its log is damaged")
            return
        if whole and zlib.crc32(os.pread(fd, length, pages)) != checksum:
            raise LogError("its log is damaged")
        seen[cluster // 8] |= 1 << cluster % 8
        yield Saved(cluster, mask, pages)
        chain, at = link, pages + length


def end_of(fd: int, header: Header) -> int:
    """Return where the last whole record of a log ends, whose process may have been killed.

    Raises:
        LogError: It was given up, or is damaged.
        OSError: It cannot be read.
    """
    end = HEADER
    for record in records(fd, header, os.fstat(fd).st_size, whole=False):
        end = record.pages + record.mask.bit_count() * PAGE
    return end
