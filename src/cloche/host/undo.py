"""What a profile's disk held before its last starts (layer 3a): which logs there are, and when one is made and sealed.

``undo/NUMBER`` in a profile's directory is the log of that start; ``host.reverting`` goes back to it.
Each start has a log, or there is none before it either: what was changed without one could not be taken back. All
of this is done by whoever holds the profile's lock.

A log is *open* while its run goes on, and *sealed* when it is known how long it is. In the same boot of the host
whoever comes next can seal it, for nothing is lost by a process that is killed. After a loss of power one that is not
sealed may lack what is on the disk already, and nothing tells: it is not used, and nothing before it.
"""

from __future__ import annotations

import fcntl
import os

from cloche.errors import ProfileError
from cloche.host.durable import sync
from cloche.host.undolog import (
    HEADER,
    Header,
    LogError,
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
    from collections.abc import Collection

_DIGITS = 8
#: A log that is being made.
_FRESH = ".new"
#: Behind a log's name: the program's words, with NUL bytes between them.
_ARGV, _MOST_ARGV = ".argv", 4096
#: A log takes at most this part of what is free on the host when it begins.
_OF_FREE = 4
_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
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
    for number in sorted(kept_numbers(directory), reverse=True):
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
    path = log_path(directory, number)
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
        numbers = kept_numbers(directory)
        too_many = set(numbers) - {start.number for start in kept}
        if keep <= 0:
            remove(directory, too_many)
            return None
        # For good as soon as the new one is: see ``secure``.
        _unlink(directory, too_many)
        os.makedirs(os.path.join(directory, "undo"), mode=0o700, exist_ok=True)
        path = log_path(directory, max(numbers, default=0) + 1)
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

    Without it the start before would look like the last one, and logs that were removed for it could come back.

    Raises:
        OSError: The disk refuses.
    """
    sync(begun.path)
    sync(os.path.dirname(begun.path))


def settle(directory: str) -> str:
    """Seal the log of a run that has ended. Done at once, or by the next command in the same boot of the host.

    A run that has changed nothing leaves no log.

    Returns:
        Why one cannot go back to the last start, in a clause, if that shows now; else nothing.

    Raises:
        OSError: The disk refuses.
    """
    number = max(kept_numbers(directory), default=0)
    if not number:
        return ""
    path = log_path(directory, number)
    fd = os.open(path, _FLAGS)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        header = read_header(fd)
        if header.sealed or header.boot != this_boot():
            return ""
        end = end_of(fd, header)
        if end == HEADER:
            remove(directory, [number])
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
    remove(directory, kept_numbers(directory))


# The files


def kept_numbers(directory: str) -> list[int]:
    """Return the numbers of the starts that have a log, in no order."""
    try:
        entries = os.listdir(os.path.join(directory, "undo"))
    except FileNotFoundError:
        return []
    return [
        int(entry) for entry in entries if len(entry) == _DIGITS and entry.isdecimal() and entry.isascii()
    ]


def log_path(directory: str, number: int) -> str:
    """Return where the log of a start is."""
    return os.path.join(directory, "undo", f"{number:0{_DIGITS}d}")


def remove(directory: str, numbers: Collection[int]) -> None:
    """Remove logs for good: one that came back after a loss of power would know nothing of what came after it.

    Raises:
        OSError: The disk refuses.
    """
    _unlink(directory, numbers)
    if numbers:
        sync(os.path.join(directory, "undo"))


def _unlink(directory: str, numbers: Collection[int]) -> None:
    for number in sorted(numbers):
        path = log_path(directory, number)
        os.unlink(path)
        try:
            os.unlink(path + _ARGV)
        except FileNotFoundError:
            pass
