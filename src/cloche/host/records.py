"""What is kept of a detached domain (layer 3a): how it began, its log and how it ended.

A directory each, below the state directory, made when its program is about to start. It outlives the domain, until it
is removed (``cloche rm``) or MOST newer ones have ended. Whether the domain lives is told by its run directory and
nowhere else, so a supervisor that is killed leaves nothing that would have to be corrected.
"""

from __future__ import annotations

import json
import os
import time

from cloche.errors import HostError
from cloche.host import xdg
from cloche.host.outlog import LOG, OLDER
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from typing import Any

#: So many domains that have ended are remembered.
MOST = 50
_RECORD, _FRESH = "record.json", "record.new"
_FILES = (_RECORD, _FRESH, LOG, OLDER)


class Kept(Record):
    """What is known of a detached domain.

    Attributes:
        name: What its owner called it last; empty for nothing.
        program: Its program and arguments.
        began: When its program was started, in seconds since the epoch.
        ended: When it ended; None while it runs, and for one whose supervisor was killed.
        status: Its program's status as a shell shows it; None while it runs, and where it is not known.
        reason: Why it ended, where that was not its program's end.
    """

    ident: str
    name: str
    program: tuple[bytes, ...]
    began: float
    ended: float | None = None
    status: int | None = None
    reason: str = ""

    @property
    def directory(self) -> str:
        """Where its log is."""
        return os.path.join(_home(), self.ident)


def _home() -> str:
    return os.path.join(xdg.state_dir(), "domains")


def create(kept: Kept) -> None:
    """Begin to keep something of a domain.

    Raises:
        HostError: There is no room, or no place that is the caller's alone.
    """
    home = xdg.ensure_directory(_home())
    try:
        os.mkdir(os.path.join(home, kept.ident), 0o700)
        write(kept)
    except OSError as error:
        raise HostError(
            f"cannot keep the log of a domain in {home}: {error.strerror}",
            hint="Free some space there, or set XDG_STATE_HOME to a directory of yours.",
        ) from None


def write(kept: Kept) -> None:
    """Put down what is known now, in place of what was known before.

    Raises:
        OSError: There is no room for it, or it was removed.
    """
    fields = kept._asdict()
    fields["program"] = [os.fsdecode(word) for word in kept.program]
    fresh = os.path.join(kept.directory, _FRESH)
    with open(fresh, "w", encoding="utf-8", errors="surrogateescape") as file:
        json.dump(fields, file)
    os.replace(fresh, os.path.join(kept.directory, _RECORD))


def read(ident: str) -> Kept | None:
    """Return what is kept of a domain; None for nothing, or nothing that can be read."""
    path = os.path.join(_home(), ident, _RECORD)
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            fields: dict[str, Any] = json.load(file)
        fields["program"] = tuple(os.fsencode(word) for word in fields["program"])
        return Kept(**fields)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def read_all() -> tuple[Kept, ...]:
    """Return what is kept of every detached domain, the oldest first; those that run are among them."""
    if not xdg.is_private_directory(_home()):
        return ()
    found = (read(entry) for entry in os.listdir(_home()))
    return tuple(sorted((kept for kept in found if kept is not None), key=lambda kept: kept.began))


def remove(ident: str) -> None:
    """Forget a domain. One that is not kept is no error."""
    directory = os.path.join(_home(), ident)
    for name in _FILES:
        try:
            os.unlink(os.path.join(directory, name))
        except FileNotFoundError:
            continue
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return


def prune(running: frozenset[str]) -> None:
    """Forget the oldest of those that have ended, and half-made ones."""
    home = _home()
    if not xdg.is_private_directory(home):
        return
    kept = read_all()
    ended = [one.ident for one in kept if one.ident not in running]
    known = {one.ident for one in kept}
    for ident in ended[: max(0, len(ended) - MOST)]:
        remove(ident)
    for entry in set(os.listdir(home)) - known - running:
        try:
            old = time.time() - os.lstat(os.path.join(home, entry)).st_mtime > 60
        except OSError:
            continue
        if old:
            remove(entry)
