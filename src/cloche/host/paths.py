"""Looking at the directories a user wants to share (layer 3a), before anything is started."""

from __future__ import annotations

import errno
import os
import stat

from cloche.errors import ShareError
from cloche.model.request import Include, Share
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
    return share_directory(*parse_share(word))


def share_directory(source: str, writable: bool, target: str | None) -> Share:
    """Return the share of a directory, at the same place unless a ``target`` is given.

    Raises:
        UsageError: The target is no place.
        ShareError: As ``resolve_share``.
    """
    path = absolute(source)
    return Share(_real_directory(path), normalize_guest_path(path if target is None else target), writable)


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
            f"cannot share {share.source}: {reason_of(error)}", hint="Is it still there?"
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
        real = os.path.realpath(absolute(host), strict=True)
        mode = os.stat(real).st_mode
    except OSError as error:
        raise ShareError(f"cannot include {host}: {reason_of(error)}", hint=_INCLUDE_HINT) from None
    if real == "/":
        raise ShareError("the whole root directory cannot be included", hint=_INCLUDE_HINT)
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ShareError(f"cannot include {host}: it is neither a file nor a directory", hint=_INCLUDE_HINT)
    if not os.access(real, os.R_OK | os.X_OK if stat.S_ISDIR(mode) else os.R_OK):
        raise ShareError(f"cannot include {host}: you may not read it", hint=_INCLUDE_HINT)
    return Include(real, guest)


def absolute(path: str) -> str:
    """Return the absolute path of what the caller means.

    Raises:
        ShareError: The working directory is gone.
    """
    try:
        return os.path.abspath(os.path.expanduser(path))
    except OSError:
        raise ShareError(
            f"cannot find {path}: the working directory does not exist any more",
            hint="Change to one that does, or give an absolute path.",
        ) from None


def reason_of(error: OSError) -> str:
    """Return why a path leads nowhere, in a clause."""
    return "it leads to itself by symbolic links" if error.errno == errno.ELOOP else str(error.strerror)


def _real_directory(path: str) -> str:
    try:
        real = os.path.realpath(path, strict=True)
        mode = os.stat(real).st_mode
    except OSError as error:
        raise ShareError(
            f"cannot share {path}: {reason_of(error)}", hint="Name a directory that is there: --share DIR."
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
