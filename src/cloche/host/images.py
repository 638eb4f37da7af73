"""Looking at the files of disks and mounts (layer 3a), before anything is started.

Of an image nothing is read here but the few bytes that tell how large a file has to become, and whether it is another
format than was said.
"""

from __future__ import annotations

import errno
import os
import stat

from cloche.errors import DiskError, UsageError
from cloche.host.paths import absolute, reason_of, share_directory
from cloche.host.xdg import cache_dir
from cloche.model.request import Disk, GuestMount, MountKind
from cloche.plan.disks import MOUNT_TAG, QCOW2_MAGIC, bound_growth, parse_disk
from cloche.plan.mounts import parse_mount
from cloche.plan.shares import normalize_guest_path
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cloche.model.request import Share
    from cloche.plan.mounts import MountWord


#: What the first sector ends with where there is a table of partitions, a protective one before a GPT, too
#: (block/partitions/msdos.c and efi.c of Linux).
SECTOR, _TABLE, _HAS_TABLE = 512, 510, b"\x55\xaa"


def resolve_disk(word: str) -> Disk:
    """Turn the argument of ``--disk`` into a disk kept in an existing file, or into one that is to be made.

    Raises:
        UsageError: The word is malformed.
        DiskError: There is no such file, or it may not be read (and written), or it is empty.
        ShareError: The working directory is gone.
    """
    tag, path, kind, writable, size_bytes = parse_disk(word)
    if size_bytes:
        # Disks are kept in whole sectors of 512 bytes.
        size_bytes = -(-size_bytes // 512) * 512
        path = os.path.join(cache_dir(), "disks", tag)
        return Disk(tag, path, "raw", True, size_bytes, empty=True, is_whole=True)
    return _look_at(tag, path, kind, writable)


def resolve_mounts(
    words: Iterable[str],
) -> tuple[tuple[Share, ...], tuple[Disk, ...], tuple[GuestMount, ...]]:
    """Turn the arguments of ``--mount`` into shares, disks for the images, and what the guest mounts itself.

    Two mounts of one image, of two partitions say, have one disk.

    Raises:
        UsageError: One is malformed.
        ShareError, DiskError: What is to be mounted is not there, or may not be used.
    """
    shares: list[Share] = []
    disks: list[Disk] = []
    mounts: list[GuestMount] = []
    for word in words:
        read = parse_mount(word)
        if read.kind == MountKind.HOST_BIND:
            shares.append(share_directory(read.source, read.writable, read.target))
            continue
        source = read.source
        if read.kind == MountKind.HOST_IMAGE:
            source = _disk_of(read, disks)
        assert read.target is not None
        mounts.append(
            GuestMount(read.kind, read.target, source, read.writable, read.fs, read.part, _size_of(read))
        )
    return tuple(shares), tuple(disks), tuple(mounts)


def _size_of(read: MountWord) -> int:
    return read.size_bytes if read.kind == MountKind.RAM else 0


def _disk_of(read: MountWord, disks: list[Disk]) -> str:
    """Return the tag of the disk of an image, which is among the disks then."""
    disk = look_at_image(f"{MOUNT_TAG}{len(disks)}", read.source, read.format, read.writable)
    for known in disks:
        if known._replace(tag=disk.tag) == disk:
            return known.tag
    disks.append(disk)
    return disk.tag


def look_at_image(tag: str, path: str, kind: str, writable: bool) -> Disk:
    """Return the disk of an image; ``kind`` is empty when no format was said, which is then raw.

    Raises:
        DiskError: As ``resolve_disk``; or it is raw and looks like another format.
    """
    disk = _look_at(tag, path, kind or "raw", writable)
    if not kind and _head(disk.path)[:4] == QCOW2_MAGIC:
        raise DiskError(
            f"{path} looks like a qcow2 image",
            hint="Say format=qcow2, or format=raw if it only looks so: a guest can make any disk look like one.",
        )
    return disk


def _look_at(tag: str, path: str, kind: str, writable: bool) -> Disk:
    try:
        real = os.path.realpath(absolute(path), strict=True)
        status = os.stat(real)
        mode = status.st_mode
    except OSError as error:
        hint = "Name the file that holds the disk."
        if error.errno == errno.ENOENT:
            hint = f"`truncate -s 1G {path}` makes an empty disk."
        raise DiskError(f"cannot use {path} as a disk: {reason_of(error)}", hint=hint) from None
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise DiskError(
            f"cannot use {path} as a disk: it is neither a file nor a block device",
            hint="A directory is shared with --share.",
        )
    if not os.access(real, os.R_OK | (os.W_OK if writable else 0)):
        what = "read and write" if writable else "read"
        may_read = writable and os.access(real, os.R_OK)
        raise DiskError(
            f"cannot use {path} as a disk: you may not {what} it",
            hint="With ,ro it is only read." if may_read else f"`ls -l {path}` says who may.",
        )
    if stat.S_ISBLK(mode):
        return Disk(tag, real, kind, writable, None)
    if status.st_size == 0:
        raise DiskError(
            f"cannot use {path} as a disk: it is empty", hint=f"`truncate -s 1G {path}` gives it a size."
        )
    head = _head(real)
    is_whole = kind == "raw" and writable and head[_TABLE:SECTOR] != _HAS_TABLE
    return Disk(tag, real, kind, writable, bound_growth(kind, status.st_size, head), is_whole=is_whole)


def _head(path: str) -> bytes:
    """Return the beginning of an image."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(SECTOR)
    except OSError as error:
        raise DiskError(f"cannot read {path}: {reason_of(error)}") from None


def make_file_system(path: str, size_bytes: int) -> None:
    """Make a sparse image with an empty ext4 that has no journal: for what is written once, as a whole.

    Raises:
        MissingToolError: There is no mkfs.ext4.
        CommandError: It fails.
        OSError: There is no room, or something is there.
    """
    from cloche.errors import MissingToolError
    from cloche.host.process import run
    from cloche.host.tools import find_system_tool

    mkfs = find_system_tool("mkfs.ext4")
    if not mkfs:
        raise MissingToolError("mkfs.ext4", hint="Install the package e2fsprogs.")
    with open(path, "xb") as file:
        file.truncate(size_bytes)
    os.chmod(path, 0o600)
    options = "lazy_itable_init=1,nodiscard,root_owner=0:0"
    run((mkfs, "-q", "-F", "-m", "0", "-O", "^has_journal", "-E", options, path), check=True)


def read_list(path: str) -> list[str]:
    """Return the lines ``GUEST=HOST`` of a file of ``--include-list``; names in it are relative to its directory.

    Blank lines, and those that begin with ``#``, say nothing.

    Raises:
        UsageError: It cannot be read, or a line says something else.
    """
    try:
        with open(absolute(path), encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().split("\n")
    except (OSError, ValueError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        raise UsageError(
            f"--include-list {path}: {reason}", hint="Name a file with lines GUEST=HOST."
        ) from None
    words: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        guest, equals, host = line.partition("=")
        if not equals or not host or not guest.startswith("/") or "\0" in line:
            raise UsageError(
                f"{path}, line {number}: {line!r} is not of the form GUEST=HOST",
                hint="For example /etc/app.conf=app.conf, which is looked for beside the list.",
            )
        beside = os.path.join(os.path.dirname(absolute(path)), os.path.expanduser(host))
        words.append(f"{normalize_guest_path(guest)}={beside}")
    return words
