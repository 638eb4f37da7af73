"""The store of profiles (layer 3a): a directory for each, below the XDG data directory.

A profile appears and goes in one step: it is made under a hidden name and renamed when it is whole, and renamed back
to a hidden name before it is deleted. What somebody who was killed has left under such a name is removed by the next
command. Nothing here looks into a disk: a guest has written it.
"""

from __future__ import annotations

import fcntl
import os

from cloche.errors import MissingToolError, ProfileError, UsageError
from cloche.host import xdg
from cloche.host.durable import sync
from cloche.host.names import check_name
from cloche.host.profile_place import IMAGE, exists, home
from cloche.model.profile import CEILING_BYTES
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Somebody who works on a directory under such a name holds its lock.
NEW, GONE = ".new-", ".gone-"
#: Smaller ones have no room for a journal and what a home begins with.
LEAST_BYTES = 64 << 20
#: What an ext4 of blocks of 4 KiB can have.
MOST_BYTES = 1 << 44
_JOURNAL_MIB, _SMALL_JOURNAL_MIB = 32, 4
_SMALL_BYTES = 1 << 30
_BLOCK = 4096


def directory(name: str) -> str:
    """Return where a profile is.

    Raises:
        UsageError: It cannot be a profile's name.
        ProfileError: There is none, or somebody else can write to it.
    """
    check_name(name, "profile")
    if not exists(name):
        import difflib

        near = difflib.get_close_matches(name, names(), n=1, cutoff=0.6)
        raise ProfileError(
            f"you have no profile {name}",
            hint=f"Did you mean {near[0]}?" if near else f"`cloche profile new {name}` makes it.",
        )
    path = os.path.join(home(), name)
    for place in (home(), path):
        if not xdg.is_private_directory(place):
            raise ProfileError(
                f"{place} is not yours alone, so no profile is taken from there",
                hint=f"chmod go-w {place}, and see that it belongs to you.",
            )
    return path


def image(name: str) -> str:
    """Return the disk of a profile (see ``directory`` for what is raised)."""
    return os.path.join(directory(name), IMAGE)


def names() -> list[str]:
    """Return the names of all profiles."""
    if not xdg.is_private_directory(home()):
        return []
    return sorted(name for name in os.listdir(home()) if exists(name))


def is_size(size_bytes: int) -> bool:
    """Tell whether the disk of a profile can have that size."""
    return LEAST_BYTES <= size_bytes <= MOST_BYTES and not size_bytes % _BLOCK


def new(name: str, size_bytes: int = CEILING_BYTES) -> None:
    """Make a profile: a directory with a disk on which nothing is yet.

    Raises:
        UsageError: It cannot be a profile's name, or no disk has that size.
        ProfileError: There is one of that name, or no room.
        MissingToolError: There is no mkfs.ext4.
    """
    check_name(name, "profile")
    if exists(name):
        raise taken(name)
    with building() as place:
        make_disk(os.path.join(place, IMAGE), size_bytes)
        publish(place, name)


def renew_disk(name: str, before: Callable[[], None]) -> None:
    """Put a disk on which nothing is in the place of a profile's; the caller holds its lock.

    Args:
        name: The profile.
        before: Called when the new disk is whole and the old one still there.

    Raises:
        ProfileError: There is no room.
        MissingToolError: There is no mkfs.ext4.
    """
    path = image(name)
    with building() as place:
        fresh = os.path.join(place, IMAGE)
        make_disk(fresh, os.stat(path).st_size)
        try:
            sync(fresh)
            before()
            os.rename(fresh, path)
            sync(os.path.dirname(path))
        except OSError as error:
            raise _refused(f"cannot reset the profile {name}", error) from None


def grow_disk(name: str, size_bytes: int) -> None:
    """Let a profile's disk become larger; the caller holds its lock.

    Raises:
        UsageError: It would become smaller, or larger than a disk can be.
        ProfileError: The file system refuses.
    """
    path = image(name)
    size_bytes = check_growth(name, os.stat(path).st_size, size_bytes)
    try:
        os.truncate(path, size_bytes)
    except OSError as error:
        raise _refused(f"cannot resize the profile {name}", error) from None


def check_growth(name: str, now_bytes: int, size_bytes: int) -> int:
    """Return how large a profile's disk becomes when that is asked for.

    Raises:
        UsageError: It would become smaller, or larger than a disk can be.
    """
    size_bytes = _check_size(size_bytes)
    if size_bytes < now_bytes:
        raise UsageError(
            f"the disk of the profile {name} has {now_bytes >> 20} MiB and cannot become smaller",
            hint="What is deleted in it takes no room on the host; `cloche profile export` moves it to a new one.",
        )
    return size_bytes


def _check_size(size_bytes: int) -> int:
    size_bytes = size_bytes // _BLOCK * _BLOCK
    if not is_size(size_bytes):
        raise UsageError("the disk of a profile has 64M to 16T", hint="Write for example 20G.")
    return size_bytes


def check_room(name: str) -> None:
    """Look whether there is room to mend a profile's disk that was not closed cleanly.

    What its journal holds goes to places that may be holes yet. e2fsck that finds no room for it in its middle has
    dropped the journal and leaves a damaged disk.

    Raises:
        ProfileError: There is too little.
    """
    path = image(name)
    needed = 2 * _journal_mib(os.stat(path).st_size) << 20
    status = os.statvfs(path)
    if status.f_bavail * status.f_frsize < needed:
        raise ProfileError(
            f"the profile {name} was not closed cleanly, and there is too little room to mend its disk",
            hint=f"Free {needed >> 20} MiB in {home()}: nothing is lost yet.",
        )


def _journal_mib(size_bytes: int) -> int:
    return _JOURNAL_MIB if size_bytes >= _SMALL_BYTES else _SMALL_JOURNAL_MIB


def make_disk(path: str, size_bytes: int) -> None:
    """Make a disk on which nothing is.

    Raises:
        UsageError: No disk has that size.
        ProfileError: There is no room.
        MissingToolError: There is no mkfs.ext4.
    """
    from cloche.host.process import CommandError, run
    from cloche.host.tools import find_system_tool

    size_bytes = _check_size(size_bytes)
    mkfs = find_system_tool("mkfs.ext4")
    if not mkfs:
        raise MissingToolError("mkfs.ext4", hint="Install the package e2fsprogs.")
    # All of it is a hole and reads as zeros: nothing has to be discarded or zeroed.
    options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"
    try:
        with open(path, "xb") as file:
            file.truncate(size_bytes)
        os.chmod(path, 0o600)
        run(
            (
                mkfs,
                "-q",
                "-F",
                "-m",
                "0",
                "-J",
                f"size={_journal_mib(size_bytes)}",
                "-E",
                options,
                "-L",
                "cloche",
                path,
            ),
            check=True,
        )
    except CommandError as error:
        raise ProfileError(
            error.message,
            detail=error.log_tail,
            hint="Free some space there, or point XDG_DATA_HOME to another place.",
        ) from None
    except OSError as error:
        raise _refused(f"cannot make {path}", error) from None


class building:  # noqa: N801 - used as a function; contextlib would be imported on the way to a start
    """Provide a hidden directory for a profile that is being made; what is left in it at the end is removed.

    Raises:
        ProfileError: It cannot be made.
    """

    def __init__(self) -> None:
        self._lock = -1
        self.path = ""

    def __enter__(self) -> str:
        sweep()
        self.path = os.path.join(xdg.ensure_directory(home()), f"{NEW}{os.urandom(6).hex()}")
        try:
            os.mkdir(self.path, 0o700)
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _refused(f"cannot make {self.path}", error) from None
        # As long as somebody works on it: the kernel lets go of the lock however that ends.
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self.path

    def __exit__(self, *error: object) -> None:
        remove_tree(self.path)
        os.close(self._lock)


def publish(prepared: str, name: str) -> None:
    """Give a whole profile its name.

    Raises:
        ProfileError: There is one of that name, or the disk refuses.
    """
    place = os.path.join(home(), name)
    try:
        for entry in (*os.listdir(prepared), "."):
            sync(os.path.join(prepared, entry))
        # A directory is never put in the place of one that holds something.
        os.rename(prepared, place)
        sync(home())
    except OSError as error:
        if os.path.lexists(place):
            raise taken(name) from None
        raise _refused(f"cannot make the profile {name}", error) from None


def taken(name: str) -> ProfileError:
    """Return the error for a name that is taken."""
    return ProfileError(
        f"there is a profile {name} already", hint=f"Take another name, or `cloche profile delete {name}`."
    )


def delete(name: str) -> None:
    """Delete a profile, which nobody uses; the caller holds its lock (``host.profile_lock``).

    Raises:
        ProfileError: It cannot be removed.
    """
    # Out of sight in one step, so that nobody finds half of it.
    hidden = os.path.join(home(), f"{GONE}{os.urandom(6).hex()}")
    try:
        os.rename(directory(name), hidden)
        sync(home())
    except OSError as error:
        raise _refused(f"cannot delete the profile {name}", error) from None
    remove_tree(hidden)


def rename(name: str, wanted: str) -> None:
    """Call a profile something else; the caller holds its lock.

    Raises:
        UsageError: It cannot be a profile's name.
        ProfileError: That is taken, or the disk refuses.
    """
    check_name(wanted, "profile")
    place = os.path.join(home(), wanted)
    try:
        if os.path.lexists(place):
            raise taken(wanted)
        os.rename(directory(name), place)
        sync(home())
    except OSError as error:
        raise _refused(f"cannot rename the profile {name}", error) from None


def sweep() -> None:
    """Remove what was begun, or half removed, by processes that are gone."""
    if not xdg.is_private_directory(home()):
        return
    for path in _left_over():
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_tree(path)
        except BlockingIOError:
            continue  # somebody works on it
        finally:
            os.close(fd)


def _left_over() -> Iterator[str]:
    for entry in os.listdir(home()):
        if entry.startswith((NEW, GONE)):
            yield os.path.join(home(), entry)


def remove_tree(path: str) -> None:
    """Remove a directory with what is in it, as far as that can be done; what is left is removed by ``sweep``."""
    import shutil

    shutil.rmtree(path, ignore_errors=True)


def _refused(what: str, error: OSError) -> ProfileError:
    return ProfileError(
        f"{what}: {error.strerror}",
        hint="Free some space there, or point XDG_DATA_HOME to another place.",
    )
