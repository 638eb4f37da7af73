"""What can be done to a profile as a whole (layer 5), without a guest: its disk is copied, renamed or deleted unread.

Each of these ends with the old state or with the new one, whenever it is killed.
"""

from __future__ import annotations

import os
from functools import partial

from cloche.errors import ProfileError
from cloche.host import profiles, undo
from cloche.host.names import check_name
from cloche.host.profile_lock import SEALED, Hold, forget_other_host, is_held, read_note, this_host
from cloche.host.profile_place import IMAGE, exists
from cloche.host.sparse import copy_file
from cloche.model.profile import Entry
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_BLOCK = 512
#: What of a profile's directory belongs to its disk's past, or to whoever has it at the moment.
_NOT_COPIED = frozenset((IMAGE, "lock", SEALED, "starts.jsonl", "undo", "undo.lock"))


def look(name: str) -> Entry:
    """Return what there is to say of a profile.

    Raises:
        UsageError, ProfileError: There is none.
    """
    directory = profiles.directory(name)
    status = os.stat(os.path.join(directory, IMAGE))
    note = read_note(name)
    state, domain = "ready", ""
    if is_held(name):
        state, domain = "running", note.domain if note else ""
    elif note is not None and note.host != this_host()[0]:
        state = "elsewhere"
    elif os.path.lexists(os.path.join(directory, SEALED)):
        state = "locked"
    elif note is not None:
        state = "unclean"
    return Entry(name, status.st_size, status.st_blocks * _BLOCK, state, domain)


def delete(name: str) -> None:
    """Delete a profile with all that is in it.

    Raises:
        UsageError, ProfileError: There is none, or it is in use, or locked.
    """
    hold = Hold.take(name)
    try:
        profiles.delete(name)
    finally:
        hold.release()


def rename(name: str, wanted: str) -> None:
    """Call a profile something else.

    Raises:
        UsageError, ProfileError: There is none, it is in use or locked, or the name is taken.
    """
    hold = Hold.take(name)
    try:
        profiles.rename(name, wanted)
    finally:
        hold.release()


def user_of(name: str) -> str:
    """Return the domain that runs with a profile; empty for none that is known.

    Raises:
        UsageError, ProfileError: There is no such profile.
    """
    entry = look(name)
    return entry.domain if entry.state == "running" else ""


def clone(name: str, wanted: str, progress: Callable[[int, int], None] | None = None) -> None:
    """Make a profile that begins as a copy of another one, which nobody uses at the moment.

    Blocks are shared where the file system can do that; else what is no hole is copied.

    Args:
        name: Which one is copied.
        wanted: What the copy is called.
        progress: Called now and then with how many bytes are copied, and of how many.

    Raises:
        UsageError, ProfileError: There is none, it is in use, the name is taken, or there is no room.
    """
    check_free(wanted)
    hold = Hold.take(name, sealed=True)
    try:
        copy(name, wanted, progress, is_clean=hold.is_clean)
    finally:
        hold.release()


def check_free(wanted: str) -> None:
    """Look whether a profile can be called so.

    Raises:
        UsageError, ProfileError: It cannot, or one is.
    """
    check_name(wanted, "profile")
    if exists(wanted):
        raise profiles.taken(wanted)


def copy(
    name: str,
    wanted: str,
    progress: Callable[[int, int], None] | None,
    *,
    is_clean: bool,
    copied: Callable[[], None] | None = None,
) -> None:
    """Copy a profile whose disk nobody writes to, as the caller has seen to.

    Args:
        name: Which one is copied.
        wanted: What the copy is called.
        progress: Called now and then with how many bytes are copied, and of how many.
        is_clean: Whether its disk is as if it had been closed cleanly.
        copied: Called when the copy is whole and has no name yet; what it raises ends all.

    Raises:
        ProfileError: There is no room.
    """
    try:
        directory = profiles.directory(name)
        with profiles.building() as place:
            for entry in sorted(os.listdir(directory)):
                if entry not in _NOT_COPIED and not entry.startswith("."):
                    _copy(os.path.join(directory, entry), os.path.join(place, entry), None)
            if not is_clean:
                # The copy is to be checked, too.
                _copy(os.path.join(directory, "lock"), os.path.join(place, "lock"), None)
            _copy(os.path.join(directory, IMAGE), os.path.join(place, IMAGE), progress)
            if copied is not None:
                copied()
            profiles.publish(place, wanted)
    except OSError as error:
        raise ProfileError(
            f"cannot copy the profile {name}: {error.strerror}", hint="Free some space there."
        ) from None


def _copy(source: str, target: str, progress: Callable[[int, int], None] | None) -> None:
    """Copy a file; not what only looks like one."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    read = os.open(source, os.O_RDONLY | flags)
    try:
        write = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, 0o600)
        try:
            whole = os.fstat(read).st_blocks * _BLOCK
            for _ in copy_file(read, write):
                if progress is not None:
                    progress(min(os.fstat(write).st_blocks * _BLOCK, whole), whole)
        finally:
            os.close(write)
    finally:
        os.close(read)


def reset(name: str) -> None:
    """Take back all that was ever changed in a profile: it is as it was when it was new.

    Raises:
        UsageError, ProfileError: There is none, or it is in use, or locked.
    """
    hold = Hold.take(name)
    try:
        # What was kept of earlier starts is of another disk's blocks; it is needed until there is room for that one.
        profiles.renew_disk(name, partial(undo.forget, profiles.directory(name)))
        hold.is_clean = True
        hold.release(is_clean=True)
    finally:
        hold.release()


def grow(name: str, size_bytes: int) -> None:
    """Let the disk of a profile become larger; the file system on it is grown by a guest (``api.profile``).

    Raises:
        UsageError, ProfileError: There is none, it is in use or locked, or that is no larger size.
    """
    hold = Hold.take(name)
    try:
        profiles.grow_disk(name, size_bytes)
    finally:
        hold.release()


def lock(name: str) -> None:
    """Keep a profile from being started, changed, renamed and deleted.

    Raises:
        UsageError, ProfileError: There is none, or it is in use.
    """
    hold = Hold.take(name, sealed=True)
    try:
        with open(os.path.join(profiles.directory(name), SEALED), "ab"):
            pass
    finally:
        hold.release()


def unlock(name: str) -> None:
    """Let it be used again; also where another host seemed to use it, and does not.

    Raises:
        UsageError, ProfileError: There is none, or it is in use.
    """
    forget_other_host(name)
    try:
        os.unlink(os.path.join(profiles.directory(name), SEALED))
    except FileNotFoundError:
        pass  # it was not locked
