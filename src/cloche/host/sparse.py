"""Copying files that are mostly holes (layer 3a): a guest's memory, disk images.

Copies are made by generators that give way after each piece, so that a loop which serves others can go on with them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import zlib

from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from typing import TypeVar

    Result = TypeVar("Result")

#: Files are copied in pieces of this many bytes at most.
PIECE = 4 << 20
#: Between two chances for others, in bytes.
_TURN = 16 << 20
_PAGE = 4096
_EMPTY = bytes(_PAGE)
#: linux/fs.h: two files share their blocks until one of them is written to.
_FICLONE = 0x40049409


def extents(fd: int, size: int) -> list[tuple[int, int]]:
    """Return begin and end of everything in a file that is no hole."""
    found = []
    at = 0
    while at < size:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing more
                break
            raise
        at = os.lseek(fd, begin, os.SEEK_HOLE)
        found.append((begin, at))
    return found


def copy_memory(source: int, target: int, *, thrifty: bool) -> Generator[None, None, tuple[int, int]]:
    """Copy a guest's memory into an empty file; returns how many bytes were copied, and their CRC-32.

    What is a hole stays one; where the copy is ``thrifty``, so does every page that is all zero. One that is not has no
    checksum.

    Raises:
        OSError: It cannot be written.
    """
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    used = checksum = turn = 0
    for begin, end in extents(source, size):
        for at in range(begin, end, PIECE):
            length = min(PIECE, end - at)
            if thrifty:
                data = os.pread(source, length, at)
                for first, last in _used(data):
                    piece = memoryview(data)[first:last]
                    if os.pwrite(target, piece, at + first) != len(piece):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    used += len(piece)
                    checksum = zlib.crc32(piece, checksum)
            else:
                _send(source, target, at, length)
                used += length
            turn += length
            if turn >= _TURN:
                turn = 0
                yield
    return used, checksum


def _used(data: bytes) -> Iterator[tuple[int, int]]:
    """Return begin and end of every run of pages that are not all zero."""
    run = -1
    for offset in range(0, len(data), _PAGE):
        page = data[offset : offset + _PAGE]
        if page != _EMPTY[: len(page)]:
            run = offset if run < 0 else run
        elif run >= 0:
            yield run, offset
            run = -1
    if run >= 0:
        yield run, len(data)


def copy_file(source: int, target: int) -> Generator[None, None, None]:
    """Copy a file or block device into an empty file: by sharing its blocks where the file system can, else sparsely.

    Raises:
        OSError: It cannot be read or written.
    """
    is_file = stat.S_ISREG(os.fstat(source).st_mode)
    size = os.fstat(source).st_size if is_file else os.lseek(source, 0, os.SEEK_END)
    if is_file:
        try:
            fcntl.ioctl(target, _FICLONE, source)
        except OSError:
            pass  # another file system, or one that cannot: it is copied
        else:
            return
    os.ftruncate(target, size)
    turn = 0
    for begin, end in extents(source, size) if is_file else [(0, size)]:
        for at in range(begin, end, PIECE):
            length = min(PIECE, end - at)
            _send(source, target, at, length)
            turn += length
            if turn >= _TURN:
                turn = 0
                yield


def _send(source: int, target: int, at: int, length: int) -> None:
    os.lseek(target, at, os.SEEK_SET)
    end = at + length
    while at < end:
        sent = os.sendfile(target, source, at, end - at)
        if not sent:
            raise OSError(errno.EIO, "it became shorter")
        at += sent


def run_through(work: Generator[None, None, Result]) -> Result:
    """Do such a piece of work without giving way; return what came of it."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: Result = end.value
            return result


def checksum_memory(fd: int) -> tuple[int, int]:
    """Return how many bytes of a file are no holes, and their CRC-32.

    Raises:
        OSError: It cannot be read.
    """
    used = checksum = 0
    for begin, end in extents(fd, os.fstat(fd).st_size):
        for at in range(begin, end, PIECE):
            data = os.pread(fd, min(PIECE, end - at), at)
            used += len(data)
            checksum = zlib.crc32(data, checksum)
    return used, checksum
