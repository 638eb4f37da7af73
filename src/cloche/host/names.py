"""Names of running domains (layer 3a): one link each beside the run directories, from the name to the identity.

Taking a name, giving it back and cleaning up look first and act then, so each is done under one lock for all names of
a user, which the kernel lets go of however its holder ends. Reading needs no lock. Whether the domain behind a name
lives is told by its run directory alone.
"""

from __future__ import annotations

import fcntl
import os

from cloche.errors import UsageError

_MARK = "@"
_LOCK = "@"
#: As much of a word is told that is none.
_SHOWN = 80
_LONGEST = 63
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
#: An identity has as many hexadecimal digits.
_IDENT_DIGITS = 12


def check_name(word: str, kind: str = "domain") -> str:
    """Return a name that a domain, or something else of that ``kind``, may have.

    Raises:
        UsageError: It may not.
    """
    if not word or len(word) > _LONGEST or not set(word) <= _LETTERS or not word[0].isalnum():
        # An error is a sentence, however long the word.
        shown = word if len(word) <= _SHOWN else f"{word[:_SHOWN]}..."
        raise UsageError(
            f"{shown!r} cannot be a {kind}'s name",
            hint=f"Take up to {_LONGEST} letters, digits and -_. that begin with a letter or a digit.",
        )
    if len(word) == _IDENT_DIGITS and set(word) <= set("0123456789abcdef"):
        raise UsageError(
            f"{word!r} looks like the identity of a domain, so it cannot be a name",
            hint="Take a shorter one.",
        )
    return word


class locked:  # noqa: N801 - used as a function; contextlib would be imported on the way to every start
    """Hold the lock of all names below ``parent``.

    Raises:
        OSError: There is no such directory, or no room.
    """

    def __init__(self, parent: str) -> None:
        self._path = os.path.join(parent, _LOCK)
        self._fd = -1

    def __enter__(self) -> None:
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def __exit__(self, *error: object) -> None:
        os.close(self._fd)


def is_name(entry: str) -> bool:
    """Tell whether an entry of the runtime directory is a name."""
    return entry.startswith(_MARK) and entry != _LOCK


def holder(parent: str, name: str) -> str:
    """Return the identity of the domain that has taken the name, living or not; empty for none."""
    try:
        return os.readlink(os.path.join(parent, _MARK + name))
    except FileNotFoundError:
        return ""


def take(parent: str, name: str, ident: str) -> None:
    """Let the name be the domain's; the lock is held, and the name is nobody's who lives.

    Raises:
        OSError: There is no room for it.
    """
    # Readers have no lock: the old link gives way to the new one at once.
    fresh = os.path.join(parent, f"{_MARK}{_MARK}{ident}")
    try:
        os.unlink(fresh)
    except FileNotFoundError:
        pass
    os.symlink(ident, fresh)
    os.replace(fresh, os.path.join(parent, _MARK + name))


def drop(parent: str, name: str, ident: str) -> None:
    """Give the name back if it is this domain's; the lock is held."""
    if holder(parent, name) == ident:
        os.unlink(os.path.join(parent, _MARK + name))


def all_names(parent: str) -> dict[str, str]:
    """Return the name of each domain that has one, by its identity.

    Raises:
        OSError: The directory cannot be read.
    """
    found = {}
    for entry in os.listdir(parent):
        if not is_name(entry) or entry.startswith(_MARK * 2):
            continue
        ident = holder(parent, entry[len(_MARK) :])
        if ident:
            found[ident] = entry[len(_MARK) :]
    return found
