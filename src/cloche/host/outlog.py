"""What a program without a terminal has written (layer 3a): a log of bounded size that can be read while it grows.

Two files, of which the older one is thrown away when the newer one has half of the size: ``log`` and ``log.1``. A file
begins with ``CLOCHLOG`` and ``offset:u64``, the position of its first record in everything that was ever written, so
that a reader knows what it has read and what it has missed. A record is ``time_ns:u64 stream:u8 length:u32`` and the
bytes as they were written. All integers are little-endian. One process writes.
"""

from __future__ import annotations

import os
import struct
from time import time_ns

from cloche.errors import HostError
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Iterator

LOG, OLDER = "log", "log.1"
#: The streams: the program's two, and what cloche itself has to say.
STDOUT, STDERR, CLOCHE = 1, 2, 3
_MAGIC = b"CLOCHLOG"
_HEAD = struct.Struct("<8sQ")
_RECORD = struct.Struct("<QBI")
_LONGEST = 1 << 20


class Entry(Record):
    """Something that was written.

    Attributes:
        position: Where the next entry begins, in everything that was ever written.
        time_ns: When, in nanoseconds since the epoch.
        stream: STDOUT, STDERR or CLOCHE.
    """

    position: int
    time_ns: int
    stream: int
    data: bytes


class LogWriter:
    """Writes a log of at most ``size`` bytes (and a record more) in a directory.

    Attributes:
        position: The end of everything that was written.

    Raises:
        HostError: The log cannot be made.
    """

    def __init__(self, directory: str, size: int) -> None:
        self.position = 0
        self._directory = directory
        self._half = max(size // 2, 4096)
        self._fd = -1
        self._written = 0
        self._begin()

    def _begin(self) -> None:
        path = os.path.join(self._directory, LOG)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HostError(
                f"cannot make the log {path}: {error.strerror}",
                hint="Free some space there, or set XDG_STATE_HOME to a directory of yours.",
            ) from None
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._written = 0
        _write(fd, _HEAD.pack(_MAGIC, self.position))

    def write(self, stream: int, data: bytes) -> None:
        """Append what was written to a stream.

        Raises:
            OSError: There is no room for it.
        """
        for start in range(0, len(data), _LONGEST):
            piece = data[start : start + _LONGEST]
            if self._written >= self._half:
                os.replace(os.path.join(self._directory, LOG), os.path.join(self._directory, OLDER))
                self._begin()
            try:
                _write(self._fd, _RECORD.pack(time_ns(), stream, len(piece)) + piece)
            except OSError:
                # Half a record would hide all that come after it.
                end = _HEAD.size + self._written
                os.ftruncate(self._fd, end)
                os.lseek(self._fd, end, os.SEEK_SET)
                raise
            grown = _RECORD.size + len(piece)
            self._written += grown
            self.position += grown

    def close(self) -> None:
        """Write no more. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def read_log(directory: str, position: int = 0) -> Iterator[Entry]:
    """Give what the log holds from ``position`` on. What was thrown away meanwhile is missing.

    Raises:
        FileNotFoundError: There is no log.
    """
    # The newer one first: when it becomes the older one in between, it is only opened twice.
    with open(os.path.join(directory, LOG), "rb") as newer:
        try:
            older = open(os.path.join(directory, OLDER), "rb")  # noqa: SIM115 - closed below
        except FileNotFoundError:
            older = None
        try:
            for file in (older, newer):
                if file is not None:
                    for entry in _read_file(file, position):
                        position = entry.position
                        yield entry
        finally:
            if older is not None:
                older.close()


def _read_file(file: object, position: int) -> Iterator[Entry]:
    read = file.read  # type: ignore[attr-defined]
    head = read(_HEAD.size)
    if len(head) < _HEAD.size:
        return
    magic, at = _HEAD.unpack(head)
    if magic != _MAGIC:
        return
    while True:
        head = read(_RECORD.size)
        if len(head) < _RECORD.size:
            return
        when, stream, length = _RECORD.unpack(head)
        data = read(min(length, _LONGEST))
        if len(data) < length:
            return  # it is being written, or its writer was killed in the middle of it
        at += _RECORD.size + length
        if at > position:
            yield Entry(at, when, stream, data)
