"""Going back to one of the last starts of a profile (layer 3a): which logs there are, and what is done with them.

``undo/NUMBER`` in a profile's directory is the log of that start, ``undo/reverting`` the marker of a revert under way.
Each start has a log, or there is none before it either: what was changed without one could not be taken back. All
of this is done by whoever holds the profile's lock.

A log is *open* while its run goes on, and *sealed* when it is known how long it is. In the same boot of the host
whoever comes next can seal it, for nothing is lost by a process that is killed. After a loss of power one that is not
sealed may lack what is on the disk already, and nothing tells: it is not used, and nothing before it.
"""

from __future__ import annotations

import errno
import fcntl
import os

from cloche.errors import ProfileError
from cloche.host.profile_place import REVERTING
from cloche.host.undolog import (
    CLUSTER,
    HEADER,
    PAGE,
    Header,
    LogError,
    Saved,
    encode_header,
    end_of,
    new_header,
    read_header,
    records,
    this_boot,
    write_header,
)
from cloche.model.profile import KEPT_BYTES, KEPT_STARTS
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

_MARKER = REVERTING[-1]
#: What the marker says: the disk is being written, or is and the logs are to go.
_WRITING, _WRITTEN = b"writing", b"written"
_DIGITS = 8
#: A log that is being made.
_FRESH = ".new"
#: Behind a log's name: the program's words, with NUL bytes between them.
_ARGV, _MOST_ARGV = ".argv", 4096
#: A log takes at most this part of what is free on the host when it begins.
_OF_FREE = 4
_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
#: linux/falloc.h: FALLOC_FL_KEEP_SIZE and FALLOC_FL_PUNCH_HOLE.
_PUNCH = 3
_WORN = "the host lost power or was switched off before its end was known"


class Start(Record):
    """A start of a profile that was kept.

    Attributes:
        number: Which.
        started_ns: When, in nanoseconds since the epoch; 0 if that is lost.
        used_bytes: What its log takes on the host.
        problem: Why one cannot go back to it, in a clause; empty when one can.
        argv: The program that was started, as far as it is known.
    """

    number: int
    started_ns: int
    used_bytes: int
    problem: str
    argv: tuple[bytes, ...] = ()


class Begun(Record):
    """The log of a start that is about to be made.

    Attributes:
        path: Its file, which has a header.
        most_bytes: How large it may become.
    """

    path: str
    most_bytes: int


def starts(directory: str) -> list[Start]:
    """Return the starts of a profile that were kept, the newest first. Nothing is changed.

    What is read of each is its beginning: whether all of it is right shows when one goes back.

    Raises:
        ProfileError: They cannot be read.
    """
    found: list[Start] = []
    after = ""
    for number in sorted(_numbers(directory), reverse=True):
        start = _look(directory, number)
        if found and found[-1].number != number + 1:
            after = after or f"start {number + 1} after it is not kept"
        if after and not start.problem:
            start = start._replace(problem=after)
        if start.problem and not after:
            after = f"start {number} after it cannot be taken back"
        found.append(start)
    return found


def _look(directory: str, number: int) -> Start:
    path = _path(directory, number)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise ProfileError(f"cannot open {path}: {error.strerror}") from None
    started, problem = 0, ""
    try:
        header = read_header(fd)
        started = header.started_ns
        problem = _problem(fd, header)
    except (LogError, OSError) as error:
        problem = error.strerror or "its log cannot be read" if isinstance(error, OSError) else error.message
    finally:
        used = os.fstat(fd).st_blocks * 512
        os.close(fd)
    return Start(number, started, used, problem, _argv(path))


def _argv(path: str) -> tuple[bytes, ...]:
    try:
        with open(path + _ARGV, "rb") as file:
            data = file.read(_MOST_ARGV)
    except OSError:
        return ()
    return tuple(data.split(b"\0")) if data else ()


def _problem(fd: int, header: Header) -> str:
    for _ in records(fd, header, os.fstat(fd).st_size, whole=False):
        break
    if header.sealed > os.fstat(fd).st_size:
        return "its log is damaged"
    return _WORN if not header.sealed and header.boot != this_boot() else ""


# A run


def begin(
    directory: str,
    disk_bytes: int,
    keep: int = KEPT_STARTS,
    total_bytes: int = KEPT_BYTES,
    argv: tuple[bytes, ...] = (),
) -> Begun | None:
    """Make the log of a start that is about to be made, and room for it; None if none is to be kept.

    Args:
        directory: The profile's.
        disk_bytes: How large its disk is.
        keep: How many starts are kept, this one among them.
        total_bytes: How much room that may take.
        argv: The program, for those who look at the list.

    Raises:
        ProfileError: It cannot be made.
    """
    try:
        settle(directory)
        kept: list[Start] = []
        for start in starts(directory):
            used = sum(one.used_bytes for one in kept) + start.used_bytes
            # The new one has half of the room at least.
            if start.problem or len(kept) + 1 >= keep or used > total_bytes // 2:
                break
            kept.append(start)
        numbers = _numbers(directory)
        _remove(directory, set(numbers) - {start.number for start in kept})
        if keep <= 0:
            return None
        os.makedirs(os.path.join(directory, "undo"), mode=0o700, exist_ok=True)
        path = _path(directory, max(numbers, default=0) + 1)
        with open(path + _ARGV, "wb") as file:
            file.write(b"\0".join(argv)[:_MOST_ARGV])
        # It appears whole: behind half of one, none of those before it could be gone back to.
        fresh = os.path.join(directory, "undo", _FRESH)
        with open(fresh, "wb") as file:
            os.chmod(fresh, 0o600)
            file.write(encode_header(new_header(disk_bytes)))
        os.rename(fresh, path)
        status = os.statvfs(directory)
        free = status.f_bavail * status.f_frsize
        most = min(total_bytes - sum(start.used_bytes for start in kept), free // _OF_FREE)
    except OSError as error:
        raise ProfileError(
            f"cannot keep what the disk in {directory} holds now: {error.strerror}",
            hint="Free some space there; with `kept_starts = 0` in its settings nothing is kept.",
        ) from None
    return Begun(path, most)


def secure(begun: Begun) -> None:
    """Wait until a loss of power leaves the log's beginning; before the guest writes for the first time.

    Without it the start before would look like the last one.

    Raises:
        OSError: The disk refuses.
    """
    _sync(begun.path)
    _sync(os.path.dirname(begun.path))


def settle(directory: str) -> str:
    """Seal the log of a run that has ended. Done at once, or by the next command in the same boot of the host.

    A run that has changed nothing leaves no log.

    Returns:
        Why one cannot go back to the last start, in a clause, if that shows now; else nothing.

    Raises:
        OSError: The disk refuses.
    """
    number = max(_numbers(directory), default=0)
    if not number:
        return ""
    path = _path(directory, number)
    fd = os.open(path, _FLAGS)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        header = read_header(fd)
        if header.sealed or header.boot != this_boot():
            return ""
        end = end_of(fd, header)
        if end == HEADER:
            _remove(directory, [number])
            return ""
        if end < os.fstat(fd).st_size:
            os.ftruncate(fd, end)
        write_header(fd, header._replace(sealed=end))
    except BlockingIOError:
        return ""  # its process has it
    except LogError as error:
        return error.message
    finally:
        os.close(fd)
    return ""


def forget(directory: str) -> None:
    """Remove all logs: the disk is another one, or was changed by something that keeps none.

    Raises:
        OSError: The disk refuses.
    """
    _remove(directory, _numbers(directory))


# Going back


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
    fd = os.open(_path(directory, number), _FLAGS)
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
    _sync(place)


def _write_back(directory: str, image: str, number: int, progress: Callable[[int, int], None]) -> None:
    """Write what the logs hold; may be begun again and again."""
    numbers = sorted(one for one in _numbers(directory) if one >= number)
    total = sum(os.stat(_path(directory, one)).st_size for one in numbers)
    done = 0
    written: set[int] = set()
    disk = os.open(image, _FLAGS)
    try:
        size = -1
        for one in numbers:
            fd = os.open(_path(directory, one), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
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
    _remove(directory, [one for one in _numbers(directory) if one >= number])
    place = os.path.join(directory, "undo")
    os.unlink(os.path.join(place, _MARKER))
    _sync(place)


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


def _numbers(directory: str) -> list[int]:
    try:
        entries = os.listdir(os.path.join(directory, "undo"))
    except FileNotFoundError:
        return []
    return [
        int(entry) for entry in entries if len(entry) == _DIGITS and entry.isdecimal() and entry.isascii()
    ]


def _path(directory: str, number: int) -> str:
    return os.path.join(directory, "undo", f"{number:0{_DIGITS}d}")


def _remove(directory: str, numbers: Collection[int]) -> None:
    """Remove logs for good: one that came back after a loss of power would know nothing of what came after it."""
    for number in sorted(numbers):
        path = _path(directory, number)
        os.unlink(path)
        try:
            os.unlink(path + _ARGV)
        except FileNotFoundError:
            pass
    if numbers:
        _sync(os.path.join(directory, "undo"))


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _tell_nobody(done: int, total: int) -> None:
    del done, total
