"""The snapshots there are (layer 3a): running machines that were saved, by their names.

A snapshot is a directory ``$XDG_DATA_HOME/cloche/snapshots/NAME/`` (0700) with ``memory`` (sparse), ``state``, a
``disk-TAG`` for each disk that can be written to, and ``info``. It is made under a hidden name, locked by whoever makes
it, and gets its own name when everything is on the disk; it is never changed afterwards.

One that is made for forks has an ``outline`` before it has anything else: as much of its description as tells which
machine goes on from it.

``info`` is a line with format and CRC-32, and JSON; so is ``outline``. What is wrong with a snapshot is an error and
never a guess: a machine that goes on with another one's memory does anything.
"""

from __future__ import annotations

import fcntl
import os
import stat
import zlib

from cloche.errors import SnapshotError
from cloche.host import xdg
from cloche.host.durable import sync
from cloche.host.removal import remove_flat

MEMORY, STATE, INFO, OUTLINE = "memory", "state", "info", "outline"
_MAGIC, _FORMAT = "cloche-snapshot", 2
_HIDDEN = "."
_MOST_INFO = 64 << 20
_HINT = "Free some space there, or point XDG_DATA_HOME to another place."


def home() -> str:
    """Return the directory of the snapshots (not made here)."""
    return os.path.join(xdg.data_dir(), "snapshots")


def disk_file(tag: str) -> str:
    """Return the name of a disk's copy."""
    return f"disk-{tag}"


class building:  # noqa: N801 - used as a function; contextlib would be imported before a domain is asked to be saved
    """Provide a hidden directory for a snapshot that is being made; what is left in it at the end is removed.

    Raises:
        SnapshotError: It cannot be made.
    """

    def __init__(self) -> None:
        self._lock = -1
        self.path = ""

    def __enter__(self) -> str:
        sweep()
        self.path = os.path.join(xdg.ensure_directory(home()), f"{_HIDDEN}new-{os.urandom(6).hex()}")
        try:
            os.mkdir(self.path, 0o700)
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise SnapshotError(f"cannot make {self.path}: {error.strerror}", hint=_HINT) from None
        # As long as somebody works on it: the kernel lets go of the lock however that ends.
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self.path

    def __exit__(self, *error: object) -> None:
        _remove(self.path)
        os.close(self._lock)


def _remove(directory: str) -> None:
    """Remove a directory with the files in it, as far as that goes: what stays is swept away later."""
    try:
        remove_flat(directory)
    except OSError:
        return


def format_info(text: str) -> bytes:
    """Return the content of ``info`` for a text."""
    body = text.encode()
    return f"{_MAGIC} {_FORMAT} {zlib.crc32(body):08x}\n".encode() + body


def write_file(directory: str, name: str, data: bytes) -> None:
    """Make a file of a snapshot.

    Raises:
        OSError: There is no room for it.
    """
    with open(os.path.join(directory, name), "xb") as file:
        file.write(data)


def settle(directory: str) -> None:
    """Wait until a directory and the files in it are on the disk.

    Raises:
        OSError: They do not get there.
    """
    for name in (*os.listdir(directory), "."):
        sync(os.path.join(directory, name))


def publish(prepared: str, name: str) -> None:
    """Give a whole snapshot its name.

    Raises:
        SnapshotError: There is one of that name.
        OSError: The disk refuses.
    """
    settle(prepared)
    parent = os.path.dirname(prepared)
    place = os.path.join(parent, name)
    if os.path.lexists(place):
        raise taken(name)
    try:
        # A directory is never put in the place of one that holds something.
        os.rename(prepared, place)
    except OSError as error:
        if os.path.lexists(place):
            raise taken(name) from None
        raise error from None
    sync(parent)


def taken(name: str) -> SnapshotError:
    """Return the error for a name that is taken."""
    return SnapshotError(
        f"there is a snapshot {name} already", hint=f"Take another name, or `cloche snapshot delete {name}`."
    )


def names() -> list[str]:
    """Return the names of all snapshots."""
    if not xdg.is_private_directory(home()):
        return []
    return sorted(name for name in os.listdir(home()) if not name.startswith(_HIDDEN))


def locate(name: str) -> str:
    """Return the directory of a snapshot: the caller's, and closed to others' writing.

    Raises:
        SnapshotError: There is none, or somebody else can write to it.
    """
    directory = os.path.join(home(), name)
    if not name or "/" in name or name.startswith(_HIDDEN) or not os.path.isdir(directory):
        raise SnapshotError(f"you have no snapshot {name!r}", hint="`cloche snapshot list` lists them.")
    require_own(home(), stat.S_IFDIR)
    check_owner(directory)
    return directory


def check_owner(directory: str) -> None:
    """Look whether a snapshot is the caller's alone.

    Raises:
        SnapshotError: It is not.
    """
    require_own(directory, stat.S_IFDIR)
    for name in os.listdir(directory):
        require_own(os.path.join(directory, name), stat.S_IFREG)


def require_own(path: str, kind: int) -> None:
    """Look whether something of a snapshot is what it should be, the caller's, and closed to others' writing.

    Raises:
        SnapshotError: It is not.
    """
    try:
        status = os.lstat(path)
    except OSError as error:
        raise damaged(path, str(error.strerror)) from None
    if stat.S_IFMT(status.st_mode) != kind or status.st_uid != os.geteuid():
        raise damaged(path, "it is not yours")
    if status.st_mode & 0o022:
        raise damaged(path, "others can write to it")


def read_info(directory: str, name: str = INFO) -> str:
    """Return the text of a snapshot's description, or of another file that is written like it.

    Raises:
        SnapshotError: It is of another version, or damaged.
    """
    path = os.path.join(directory, name)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with open(fd, "rb") as file:
            head, _, body = file.read(_MOST_INFO).partition(b"\n")
    except OSError as error:
        raise damaged(path, str(error.strerror)) from None
    words = head.decode("ascii", "replace").split(" ")
    if len(words) != 3 or words[0] != _MAGIC:
        raise damaged(path, "it describes no snapshot")
    if words[1] != str(_FORMAT):
        raise SnapshotError(
            f"{directory} is a snapshot of another version of cloche (format {words[1]}, not {_FORMAT})",
            hint="Restore it with the version that has saved it.",
        )
    if words[2] != f"{zlib.crc32(body):08x}":
        raise damaged(path, "its checksum is wrong")
    return body.decode("utf-8", "replace")


def damaged(path: str, why: str) -> SnapshotError:
    """Return the error for a snapshot that cannot be used."""
    return SnapshotError(
        f"{path} cannot be used: {why}", hint="`cloche snapshot list --check` looks at all of them."
    )


def delete(name: str) -> None:
    """Delete a snapshot; who has begun to use it is not disturbed.

    Raises:
        SnapshotError: There is none.
    """
    directory = os.path.join(home(), name)
    if not name or "/" in name or name.startswith(_HIDDEN) or not os.path.isdir(directory):
        raise SnapshotError(f"you have no snapshot {name!r}", hint="`cloche snapshot list` lists them.")
    # Out of sight in one step, so that nobody finds half of it.
    hidden = os.path.join(home(), f"{_HIDDEN}deleted-{os.urandom(6).hex()}")
    try:
        os.rename(directory, hidden)
    except OSError as error:
        raise SnapshotError(f"the snapshot {name} cannot be deleted: {error.strerror}") from None
    _remove(hidden)


def sweep() -> None:
    """Delete what was begun by processes that are gone."""
    if not xdg.is_private_directory(home()):
        return
    for name in os.listdir(home()):
        path = os.path.join(home(), name)
        if not name.startswith(_HIDDEN) or os.path.islink(path):
            continue
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path)
        except BlockingIOError:
            continue  # somebody works on it
        finally:
            os.close(fd)
