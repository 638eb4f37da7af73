"""What files of settings say, kept so that the next run need not read TOML (layer 3a).

Importing ``tomllib`` takes about as long as starting Python. What is kept is found by the file's identity, size and
times, so that one that was changed is not found any more; the time of a change of the inode (ctime) nobody can set.
Whether a file may be trusted is looked at in the file, every time. Where nothing can be kept, every run reads TOML.
"""

from __future__ import annotations

import os
import time

from cloche import log
from cloche.errors import HostError
from cloche.host import xdg
from cloche.model.settings import Entry
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_DIRECTORY = "settings-1"
_SEPARATOR = "\0"
#: A file that was changed so short a time ago could be changed again without another time, in nanoseconds.
_YOUNG_NS = 2_000_000_000
_WORDS = 3


def _prefix(level: str, status: os.stat_result) -> str:
    return f"{level}-{status.st_dev:x}-{status.st_ino:x}-"


def _name(level: str, status: os.stat_result) -> str:
    return f"{_prefix(level, status)}{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ctime_ns:x}"


def find(level: str, status: os.stat_result) -> tuple[Entry, ...] | None:
    """Return what is known of a file, None for nothing."""
    directory = os.path.join(xdg.cache_dir(), _DIRECTORY)
    try:
        if not xdg.is_private_directory(directory):
            return None
        with open(os.path.join(directory, _name(level, status)), "rb", buffering=0) as file:
            words = file.read().decode().split(_SEPARATOR)
    except (OSError, UnicodeDecodeError):
        return None
    if words.pop() or len(words) % _WORDS:
        return None  # not whole
    return tuple(
        Entry(words[at], words[at + 2], _member(words[at + 1])) for at in range(0, len(words), _WORDS)
    )


def _member(word: str) -> int | str | None:
    if not word:
        return None
    return word[1:] if word[0] == "=" else int(word) if word.isdigit() else None


def store(level: str, status: os.stat_result, entries: Iterable[Entry]) -> None:
    """Keep what a file says, unless it was changed just now, and forget what it said before."""
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < _YOUNG_NS:
        return
    words = []
    for entry in entries:
        member = "" if entry.member is None else str(entry.member)
        words += [entry.key, f"={member}" if isinstance(entry.member, str) else member, entry.word]
    directory = os.path.join(xdg.cache_dir(), _DIRECTORY)
    try:
        xdg.ensure_directory(directory)
        for name in os.listdir(directory):
            if name.startswith(_prefix(level, status)):
                os.unlink(os.path.join(directory, name))
        path = os.path.join(directory, _name(level, status))
        fresh = f"{path}.{os.getpid()}"
        with open(fresh, "wb") as file:
            file.write("".join(word + _SEPARATOR for word in words).encode())
        os.replace(fresh, path)
    except (OSError, HostError) as error:
        log.debug(f"what the settings say was not kept: {error}")
