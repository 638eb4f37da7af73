"""A profile as one stream of bytes (layer 3a): written, and read from somebody who need not be trusted.

The stream is ``cloche-profile 1`` and a line's end, then frames: a byte for the kind, four for the length of the
rest, lowest first, and the rest. HEAD is JSON; SETTINGS is cloche.toml, deflated; DATA is eight bytes for where on the
disk it belongs, four for its length, and its bytes, deflated; END is the SHA-256 of all bytes before it, and nothing
follows. Pieces of the disk come in their order, and what is not there is a hole.

Reading makes no name that stands in the stream, and no more bytes than it was allowed to. What a guest has written to
the disk is moved and never looked at.
"""

from __future__ import annotations

import os
import struct
import zlib

from cloche.errors import ProfileError
from cloche.host.settings_files import MOST_BYTES
from cloche.host.sparse import extents
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAGIC = b"cloche-profile 1\n"
_ANY_VERSION = b"cloche-profile "
_HEAD, _SETTINGS, _DATA, _END = 1, 2, 3, 4
_FRAME = struct.Struct("<BI")
_PLACE = struct.Struct("<QI")
#: Bytes of the disk in one frame, at most.
PIECE = 1 << 20
#: The longest frame: what does not get smaller becomes a little larger (zlib's compressBound).
_MOST_FRAME = PIECE + (PIECE >> 9) + 64
_MOST_HEAD = 4096
#: The fastest: an export is bound by it where the disk is fast.
_LEVEL = 1


class Head(Record):
    """What a stream says first.

    Attributes:
        name: What the profile was called.
        disk_bytes: How large its disk is.
        data_bytes: How much of that is no hole, for those who show progress.
    """

    name: str
    disk_bytes: int
    data_bytes: int


# Writing


def write_archive(
    name: str,
    disk: int,
    settings: bytes,
    write: Callable[[bytes], None],
    progress: Callable[[int, int], None],
) -> None:
    """Write a profile.

    Args:
        name: What it is called.
        disk: Its disk, open; nobody changes it meanwhile.
        settings: What stands in its cloche.toml.
        write: Takes bytes.
        progress: Told how many bytes of how many are done.

    Raises:
        OSError: The disk cannot be read, or the stream not be written.
    """
    import hashlib
    import json

    checksum = hashlib.sha256()

    def put(data: bytes) -> None:
        checksum.update(data)
        write(data)

    def frame(kind: int, *parts: bytes) -> None:
        put(_FRAME.pack(kind, sum(map(len, parts))) + b"".join(parts))

    size = os.fstat(disk).st_size
    used = extents(disk, size)
    total = sum(end - begin for begin, end in used)
    put(MAGIC)
    frame(_HEAD, json.dumps({"name": name, "disk_bytes": size, "data_bytes": total}).encode())
    if settings:
        frame(_SETTINGS, zlib.compress(settings))
    done = 0
    for begin, end in used:
        for at in range(begin, end, PIECE):
            data = os.pread(disk, min(PIECE, end - at), at)
            if data.count(0) != len(data):
                frame(_DATA, _PLACE.pack(at, len(data)), zlib.compress(data, _LEVEL))
            done += len(data)
            progress(done, total)
    frame(_END, checksum.digest())


# Reading


def is_archive(beginning: bytes) -> bool:
    """Tell whether the first bytes of a stream are those of a profile, of whichever version."""
    return beginning.startswith(_ANY_VERSION)


class ArchiveReader:
    """Reads a profile. ``read(n)`` gives at most n bytes, nothing at the end.

    Attributes:
        head: What it says first.
        settings: What its cloche.toml holds, once all is read; empty for none.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        """Read the beginning.

        Raises:
            ProfileError: It is no profile, or of another version.
        """
        import hashlib

        self._read = read
        self._checksum = hashlib.sha256()
        self.settings = b""
        magic = self._exactly(len(MAGIC))
        if magic != MAGIC:
            if is_archive(magic):
                raise ProfileError(
                    "the profile was exported by a newer version of cloche",
                    hint="Import it with that version.",
                )
            raise _damaged("it is no exported profile")
        kind, body = self._frame()
        self.head = _parse_head(body if kind == _HEAD else b"")

    def restore(self, disk: int, progress: Callable[[int, int], None]) -> None:
        """Read the rest, and write the disk into an empty file. Nothing is right before this has returned.

        Args:
            disk: The file.
            progress: Told how many bytes of how many are done.

        Raises:
            ProfileError: The stream is damaged, or ends too early.
            OSError: The disk cannot be written.
        """
        os.ftruncate(disk, self.head.disk_bytes)
        done = 0
        for at, data in self._pieces():
            if os.pwrite(disk, data, at) != len(data):
                raise OSError(28, os.strerror(28))
            done += len(data)
            progress(min(done, self.head.data_bytes), self.head.data_bytes)

    def _pieces(self) -> Iterator[tuple[int, bytes]]:
        past = 0
        while True:
            before = self._checksum.digest()
            kind, body = self._frame()
            if kind == _DATA and len(body) > _PLACE.size:
                at, length = _PLACE.unpack(body[: _PLACE.size])
                if at < past or not 0 < length <= PIECE or at + length > self.head.disk_bytes:
                    raise _damaged("a piece of the disk lies where none can")
                data = _inflate(body[_PLACE.size :], length)
                if len(data) != length:
                    raise _damaged("a piece of the disk is not as long as it says")
                past = at + length
                yield at, data
            elif kind == _SETTINGS and not past and not self.settings:
                self.settings = _inflate(body, MOST_BYTES)
            elif kind == _END and body == before:
                if self._read(1):
                    raise _damaged("something follows its end")
                return
            else:
                raise _damaged("its checksum is wrong" if kind == _END else "it holds what no profile does")

    def _frame(self) -> tuple[int, bytes]:
        kind, length = _FRAME.unpack(self._exactly(_FRAME.size))
        if length > _MOST_FRAME:
            raise _damaged("a piece of it is too long")
        return kind, self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        parts = []
        while count:
            part = self._read(count)
            if not part:
                raise _damaged("it ends too early")
            parts.append(part)
            count -= len(part)
        data = b"".join(parts)
        self._checksum.update(data)
        return data


def _parse_head(body: bytes) -> Head:
    import json

    try:
        found = json.loads(body) if len(body) <= _MOST_HEAD else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.keys() != set(Head._fields):
        raise _damaged("it does not say what it is")
    name, disk, data = (found[field] for field in Head._fields)
    if not isinstance(name, str) or any(
        type(one) is not int or not 0 <= one < 1 << 62 for one in (disk, data)
    ):
        raise _damaged("it does not say what it is")
    if disk % 512:
        raise _damaged("its disk has no whole sectors")
    return Head(name, disk, data)


def _inflate(data: bytes, most: int) -> bytes:
    work = zlib.decompressobj()
    try:
        found = work.decompress(data, most + 1)
    except zlib.error:
        raise _damaged("a piece of it cannot be unpacked") from None
    if len(found) > most or not work.eof or work.unused_data:
        raise _damaged("a piece of it is not as long as it says")
    return found


def _damaged(why: str) -> ProfileError:
    return ProfileError(
        f"the profile cannot be imported: {why}", hint="Copy it again from where it was exported."
    )
