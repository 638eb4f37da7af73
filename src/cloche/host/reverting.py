"""Making a profile's disk what it was before a start (layer 3a): what the logs of ``host.undo`` hold is written back.

``undo/reverting`` says that this is under way: who uses the profile next finishes what somebody has begun who is gone.
"""

from __future__ import annotations

import errno
import os

from cloche.errors import ProfileError
from cloche.host.durable import sync
from cloche.host.profile_place import REVERTING
from cloche.host.undo import Start, kept_numbers, log_path, remove, settle, starts
from cloche.host.undolog import CLUSTER, PAGE, LogError, Saved, read_header, records
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MARKER = REVERTING[-1]
#: What the marker says: the disk is being written, or is and the logs are to go.
_WRITING, _WRITTEN = b"writing", b"written"
_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
#: linux/falloc.h: FALLOC_FL_KEEP_SIZE and FALLOC_FL_PUNCH_HOLE.
_PUNCH = 3


def revert(
    directory: str, image: str, number: int | None, progress: Callable[[int, int], None] | None = None
) -> Start:
    """Make a disk what it was when a start began; that start and those after it are forgotten.

    Args:
        directory: The profile's.
        image: Its disk, which nobody uses.
        number: The start; None for the last one.
        progress: Told how many bytes of how many were looked at and written.

    Raises:
        ProfileError: There is no such start, or what is needed for it is not there. The disk is as before.
        OSError: The host's file system failed. Whoever uses the profile next finishes it.
    """
    finish(directory, image)
    settle(directory)
    known = starts(directory)
    wanted = known[0] if number is None and known else next((s for s in known if s.number == number), None)
    if wanted is None:
        raise ProfileError(
            "nothing is kept of any start" if number is None else f"nothing is kept of start {number}",
            hint="`cloche profile log NAME` lists what is.",
        )
    if wanted.problem:
        raise _cannot(wanted.number, wanted.problem)
    for start in known:
        if start.number >= wanted.number:
            try:
                _check(directory, start.number, image)
            except LogError as error:
                raise _cannot(wanted.number, f"of start {start.number}, {error.message}") from None
    _mark(directory, _WRITING, wanted.number)
    _write_back(directory, image, wanted.number, progress or _tell_nobody)
    _clear(directory, wanted.number)
    return wanted


def finish(directory: str, image: str) -> int:
    """Finish a revert that was begun by somebody who is gone; returns which start it went to, 0 for none.

    Raises:
        ProfileError: A log that was right is not any more: the disk is neither one nor the other.
        OSError: The host's file system failed.
    """
    try:
        with open(os.path.join(directory, "undo", _MARKER), "rb") as file:
            word, _, number = file.read(64).partition(b" ")
    except FileNotFoundError:
        return 0
    if word not in (_WRITING, _WRITTEN) or not number.isdigit():
        raise ProfileError(f"{directory}/undo/{_MARKER} is damaged")
    start = int(number)
    if word == _WRITING:
        _write_back(directory, image, start, _tell_nobody)
    _clear(directory, start)
    return start


def _cannot(number: int, why: str) -> ProfileError:
    return ProfileError(
        f"cannot go back to start {number}: {why}", hint="`cloche profile log NAME` says which are left."
    )


def _check(directory: str, number: int, image: str) -> None:
    """Read a log to its end and make it durable."""
    fd = os.open(log_path(directory, number), _FLAGS)
    try:
        header = read_header(fd)
        if not header.sealed or header.disk_bytes > os.stat(image).st_size or header.disk_bytes % 512:
            raise LogError("its log is damaged")
        for _ in records(fd, header, header.sealed, whole=True):
            pass
        os.fsync(fd)
    finally:
        os.close(fd)


def _mark(directory: str, word: bytes, number: int) -> None:
    place = os.path.join(directory, "undo")
    fresh = os.path.join(place, f".{_MARKER}")
    with open(fresh, "wb") as file:
        file.write(b"%s %d" % (word, number))
        file.flush()
        os.fsync(file.fileno())
    os.rename(fresh, os.path.join(place, _MARKER))
    sync(place)


def _write_back(directory: str, image: str, number: int, progress: Callable[[int, int], None]) -> None:
    """Write what the logs hold; may be begun again and again."""
    numbers = sorted(one for one in kept_numbers(directory) if one >= number)
    total = sum(os.stat(log_path(directory, one)).st_size for one in numbers)
    done = 0
    written: set[int] = set()
    disk = os.open(image, _FLAGS)
    try:
        size = -1
        for one in numbers:
            fd = os.open(log_path(directory, one), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                header = read_header(fd)
                size = header.disk_bytes if size < 0 else size
                for record in records(fd, header, header.sealed, whole=True):
                    if record.cluster not in written:
                        written.add(record.cluster)
                        _restore(fd, disk, record)
                    progress(done + record.pages, total)
                done += header.sealed
            finally:
                os.close(fd)
        os.ftruncate(disk, size)
        os.fsync(disk)
    finally:
        os.close(disk)
    # The logs are not needed any more, so that it does not matter in which order they go.
    _mark(directory, _WRITTEN, number)


def _clear(directory: str, number: int) -> None:
    remove(directory, [one for one in kept_numbers(directory) if one >= number])
    place = os.path.join(directory, "undo")
    os.unlink(os.path.join(place, _MARKER))
    sync(place)


def _restore(log: int, disk: int, record: Saved) -> None:
    begin = record.cluster * CLUSTER
    at = record.pages
    for first, last, is_stored in _runs(record.mask):
        offset, length = begin + first * PAGE, (last - first) * PAGE
        if is_stored:
            _write_all(disk, os.pread(log, length, at), offset)
            at += length
        else:
            _punch(disk, offset, length)


def _runs(mask: int) -> Iterator[tuple[int, int, bool]]:
    """Return begin and end of each row of pages that are all stored, or all not."""
    first = 0
    for page in range(1, CLUSTER // PAGE + 1):
        if page == CLUSTER // PAGE or mask >> page & 1 != mask >> first & 1:
            yield first, page, bool(mask >> first & 1)
            first = page


def _write_all(fd: int, data: bytes, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, memoryview(data)[done:], offset + done)


def _punch(fd: int, offset: int, length: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    while libc.fallocate(fd, _PUNCH, ctypes.c_int64(offset), ctypes.c_int64(length)):
        code = ctypes.get_errno()
        if code == errno.EINTR:
            continue
        if code not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise OSError(code, os.strerror(code))
        _write_all(fd, bytes(length), offset)
        return


def _tell_nobody(done: int, total: int) -> None:
    del done, total
