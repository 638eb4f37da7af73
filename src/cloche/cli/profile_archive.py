"""``cloche profile export|import`` (layer 6): a profile as one file, to keep or to take elsewhere."""

from __future__ import annotations

import errno
import os
import stat
import sys
from contextlib import contextmanager

from cloche import log
from cloche.cli.progress import Progress
from cloche.domain.archives import find_kind, unpack
from cloche.domain.profile_verbs import user_of
from cloche.domain.settings import read_text, what_opens, wrong
from cloche.errors import ProfileError, UsageError
from cloche.host import profiles
from cloche.host.names import check_name
from cloche.host.profile_archive import ArchiveReader, write_archive
from cloche.host.profile_lock import Hold
from cloche.host.profile_place import IMAGE, exists, settings_path
from cloche.host.settings_files import MOST_BYTES
from cloche.host.text import format_size
from cloche.model.options import Level
from cloche.model.profile import CEILING_BYTES, UPPER
from cloche.model.settings import all_keys
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cloche.cli.parser import Parsed

_STREAM = "-"


def export(parsed: Parsed) -> int:
    """Write a profile; the file is there when it is whole, and never takes another one's place."""
    if len(parsed.operands) != 2:
        raise UsageError("`cloche profile export` takes a name and a file", hint="- writes to stdout.")
    name, path = parsed.operands
    directory = profiles.directory(name)
    progress = Progress()
    try:
        settings = _read_settings(settings_path(name))
        with _target(path) as fd, _still(name) as go_on:
            disk = os.open(os.path.join(directory, IMAGE), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                write_archive(
                    name,
                    disk,
                    settings,
                    lambda data: _write_all(fd, data),
                    lambda done, total: progress("exporting", done / max(total, 1)),
                )
            finally:
                os.close(disk)
            go_on()
    except OSError as error:
        raise ProfileError(
            f"cannot export the profile {name}: {error.strerror}",
            hint="Export it to a directory that is there and has room.",
        ) from None
    finally:
        progress.done()
    return 0


@contextmanager
def _still(name: str) -> Iterator[Callable[[], None]]:
    """Have nobody write to a profile's disk; yields what says, when it has been read, whether that held."""
    ident = user_of(name)
    if ident:
        from cloche.api.profile_live import still

        with still(name, ident) as go_on:
            yield go_on
        return
    # One that its owner has locked is not changed by this.
    hold = Hold.take(name, sealed=True)
    try:
        yield lambda: None
    finally:
        hold.release(is_clean=hold.is_clean)


def _read_settings(path: str) -> bytes:
    try:
        # Who opens a FIFO to read waits for whoever writes.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return b""
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ProfileError(f"{path} is no file", hint="Settings are read from a file; move it away.")
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ProfileError(
            f"{path} is too large to be exported",
            hint=f"No run reads more than {MOST_BYTES} bytes of settings.",
        )
    return data


@contextmanager
def _target(path: str) -> Iterator[int]:
    """Provide what is written to: stdout, or a file that has no name until all is well."""
    if path == _STREAM:
        if os.isatty(1):
            raise UsageError("a profile is not written to a terminal", hint="Name a file.")
        yield 1
        return
    if os.path.lexists(path):
        raise ProfileError(f"there is a file {path} already", hint="Take another name, or remove it.")
    try:
        fd = os.open(os.path.dirname(path) or ".", os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        raise ProfileError(
            f"cannot export to {path}: the file system has no files without a name",
            hint=f"Write `- > {path}` instead: what is there is then not whole before the end.",
        ) from None
    try:
        yield fd
        os.fsync(fd)
        # Only with a directory does it take the system call that follows the link to the nameless file.
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def import_(parsed: Parsed) -> int:
    """Make a profile of what is read; it is there when all of it was found right."""
    if not 1 <= len(parsed.operands) <= 2:
        raise UsageError("`cloche profile import` takes a file and at most one name")
    path, name = parsed.operands[0], parsed.operands[1] if len(parsed.operands) == 2 else ""
    most_mib = parsed.get("most")
    most = CEILING_BYTES if most_mib is None else int(str(most_mib)) << 20
    option = None if path == _STREAM else find_kind(path)
    if option is not None:
        return _import_tar(path, option, name, most)
    try:
        source = 0 if path == _STREAM else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ProfileError(f"cannot open {path}: {error.strerror}") from None
    progress = Progress()
    try:
        reader = ArchiveReader(lambda count: os.read(source, count))
        name = _name_for(reader, name, most)
        with profiles.building() as place:
            with open(os.path.join(place, IMAGE), "xb", buffering=0) as disk:
                os.chmod(disk.fileno(), 0o600)
                reader.restore(disk.fileno(), lambda done, total: progress("importing", done / max(total, 1)))
            _take_settings(place, reader.settings, name, everything=bool(parsed.get("settings")))
            profiles.publish(place, name)
    except OSError as error:
        raise ProfileError(
            f"cannot import {path}: {error.strerror}",
            hint="Free some space there, or point XDG_DATA_HOME to another place.",
        ) from None
    finally:
        progress.done()
        if source:
            os.close(source)
    sys.stdout.write(f"{name}\n")
    return 0


def _import_tar(path: str, option: str, name: str, most: int) -> int:
    """Make a profile whose layer has what is in an archive; a guest unpacks it."""
    if not name:
        name = os.path.basename(path).partition(".")[0]
    check_name(name, "profile")
    if exists(name):
        raise profiles.taken(name)
    with profiles.building() as place, open(path, "rb", buffering=0) as archive:
        image = os.path.join(place, IMAGE)
        profiles.make_disk(image, most)
        unpack(archive.fileno(), path, option, image, size_bytes=most, below=UPPER)
        profiles.publish(place, name)
    sys.stdout.write(f"{name}\n")
    return 0


def _name_for(reader: ArchiveReader, name: str, most: int) -> str:
    name = check_name(name or reader.head.name, "profile")
    if exists(name):
        raise profiles.taken(name)
    size = reader.head.disk_bytes
    if not profiles.is_size(size):
        raise ProfileError(
            f"the profile cannot be imported: no profile has a disk of {size} bytes",
            hint="They have whole blocks of 4096 bytes, 64 MiB or more of them.",
        )
    if size > most:
        raise ProfileError(
            f"the profile has a disk of {format_size(size)}, and {format_size(most)} is the most that is taken",
            hint=f"`--most {-(-size >> 30)}G` takes it.",
        )
    return name


def _take_settings(place: str, data: bytes, name: str, *, everything: bool) -> None:
    """Keep settings from elsewhere, unless they would open something of the host and that was not asked for."""
    if not data:
        return
    target = os.path.join(place, os.path.basename(settings_path(name)))
    settings, problems = read_text(data.decode("utf-8", "replace"), Level.PROFILE, "its settings", all_keys())
    if problems:
        raise wrong("its settings", problems)
    opens = what_opens(settings)
    if opens and not everything:
        log.notice(
            f"the settings of {name} are left out, because they say {', '.join(opens)}: --settings takes them"
        )
        return
    with open(target, "xb") as file:
        os.chmod(file.fileno(), 0o600)
        file.write(data)
