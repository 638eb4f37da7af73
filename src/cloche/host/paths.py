"""Looking at the directories a user wants to share (layer 3a), before anything is started."""

from __future__ import annotations

import errno
import os
import stat

from cloche.errors import DiskError, ShareError
from cloche.model.request import Disk, Include, Share
from cloche.plan.disks import QCOW2_HEAD, bound_growth, parse_disk
from cloche.plan.shares import contains, normalize_guest_path, parse_include, parse_share

#: Trees that are views of the host's processes and devices. A share of one would open the host.
_INCLUDE_HINT = "Name a file or a directory that you may read: --include GUEST=HOST."
_KERNELS_OWN = ("/proc", "/sys", "/dev")


def resolve_share(word: str) -> Share:
    """Turn the argument of ``--share`` into a share of an existing directory.

    Links in the path are followed here, once: what is shared is the directory they led to at this moment.

    Raises:
        UsageError: The word is malformed.
        ShareError: There is no such directory, or it cannot be read, or it is the root.
    """
    source, writable, target = parse_share(word)
    absolute = _absolute(source)
    real = _real_directory(absolute)
    return Share(real, normalize_guest_path(target if target is not None else absolute), writable)


def open_share(word: str) -> tuple[Share, int]:
    """Turn the argument of ``share add`` into a share, and open its directory with the caller's rights.

    The descriptor is the caller's to close. What it refers to is shared, whatever its name leads to later.

    Raises:
        UsageError: The word is malformed.
        ShareError: As ``resolve_share``.
    """
    share = resolve_share(word)
    try:
        fd = os.open(share.source, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise ShareError(
            f"cannot share {share.source}: {_reason(error)}", hint="Is it still there?"
        ) from None
    try:
        # The name may have come to lead elsewhere between the look and the opening: it is what was opened that counts.
        return share._replace(source=_real_directory(os.readlink(f"/proc/self/fd/{fd}"))), fd
    except BaseException:
        os.close(fd)
        raise


def share_here() -> Share:
    """Return the working directory as a writable share at the same path (``--here``).

    Raises:
        ShareError: It is gone, or it is the root.
    """
    try:
        here = os.getcwd()
    except OSError:
        raise ShareError(
            "the working directory does not exist any more", hint="Change to one that does."
        ) from None
    return Share(_real_directory(here), here, True)


def resolve_include(word: str) -> Include:
    """Turn the argument of ``--include`` into a copy of an existing file or directory.

    Raises:
        UsageError: The word is malformed.
        ShareError: The host file does not exist or cannot be read.
    """
    guest, host = parse_include(word)
    try:
        real = os.path.realpath(_absolute(host), strict=True)
        mode = os.stat(real).st_mode
    except OSError as error:
        raise ShareError(f"cannot include {host}: {_reason(error)}", hint=_INCLUDE_HINT) from None
    if real == "/":
        raise ShareError("the whole root directory cannot be included", hint=_INCLUDE_HINT)
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ShareError(f"cannot include {host}: it is neither a file nor a directory", hint=_INCLUDE_HINT)
    if not os.access(real, os.R_OK | os.X_OK if stat.S_ISDIR(mode) else os.R_OK):
        raise ShareError(f"cannot include {host}: you may not read it", hint=_INCLUDE_HINT)
    return Include(real, guest)


def resolve_disk(word: str) -> Disk:
    """Turn the argument of ``--disk`` into a disk kept in an existing file.

    Raises:
        UsageError: The word is malformed.
        DiskError: There is no such file, or it may not be read (and written).
        ShareError: The working directory is gone.
    """
    tag, path, kind, writable = parse_disk(word)
    try:
        real = os.path.realpath(_absolute(path), strict=True)
        status = os.stat(real)
        mode = status.st_mode
    except OSError as error:
        hint = f"`truncate -s 1G {path}` makes an empty disk." if error.errno == errno.ENOENT else None
        raise DiskError(f"cannot use {path} as a disk: {_reason(error)}", hint=hint) from None
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise DiskError(f"cannot use {path} as a disk: it is neither a file nor a block device")
    if not os.access(real, os.R_OK | (os.W_OK if writable else 0)):
        what = "read and write" if writable else "read"
        hint = "With ,ro it is only read." if writable and os.access(real, os.R_OK) else None
        raise DiskError(f"cannot use {path} as a disk: you may not {what} it", hint=hint)
    most = None if stat.S_ISBLK(mode) else bound_growth(kind, status.st_size, _head(real, kind))
    return Disk(tag, real, kind, writable, most)


def _head(path: str, kind: str) -> bytes:
    """Return the beginning of an image, if it says something about its size."""
    if kind == "raw":
        return b""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(QCOW2_HEAD)
    except OSError as error:
        raise DiskError(f"cannot read {path}: {_reason(error)}") from None


def _absolute(path: str) -> str:
    try:
        return os.path.abspath(os.path.expanduser(path))
    except OSError:
        raise ShareError(
            f"cannot find {path}: the working directory does not exist any more",
            hint="Change to one that does, or give an absolute path.",
        ) from None


def _reason(error: OSError) -> str:
    return "it leads to itself by symbolic links" if error.errno == errno.ELOOP else str(error.strerror)


def _real_directory(path: str) -> str:
    try:
        real = os.path.realpath(path, strict=True)
        mode = os.stat(real).st_mode
    except OSError as error:
        raise ShareError(
            f"cannot share {path}: {_reason(error)}", hint="Name a directory that is there: --share DIR."
        ) from None
    if not stat.S_ISDIR(mode):
        raise ShareError(
            f"cannot share {path}: it is not a directory",
            hint=f"Copy a single file in with --include {path}={path}.",
        )
    if real == "/":
        raise ShareError(
            "the whole root directory cannot be shared: nothing would be hidden any more",
            hint="Share the directories the program needs, for example --share ~/project:rw.",
        )
    kernels_own = next((tree for tree in _KERNELS_OWN if contains(tree, real)), None)
    if kernels_own is not None:
        raise ShareError(
            f"cannot share {path}: {kernels_own} is the host's kernel, not files of yours",
            hint="The guest has its own /proc, /sys and /dev.",
        )
    if not os.access(real, os.R_OK | os.X_OK):
        raise ShareError(f"cannot share {path}: you may not read it", hint=f"ls -ld {path} says who may.")
    return real
