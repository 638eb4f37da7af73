"""Looking at the directories a user wants to share (layer 3a), before anything is started."""

from __future__ import annotations

import errno
import os
import stat

from cloche.errors import ShareError
from cloche.model.request import Include, Share
from cloche.plan.shares import normalize_guest_path, parse_include, parse_share


def resolve_share(word: str) -> Share:
    """Turn the argument of ``--share`` into a share of an existing directory.

    Links in the path are followed here, once: what is shared is the directory they led to at this moment.

    Raises:
        UsageError: The word is malformed.
        ShareError: There is no such directory, or it cannot be read, or it is the root.
    """
    source, writable, target = parse_share(word)
    absolute = os.path.abspath(os.path.expanduser(source))
    real = _real_directory(absolute)
    return Share(real, normalize_guest_path(target if target is not None else absolute), writable)


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
    real = os.path.realpath(os.path.expanduser(host))
    try:
        mode = os.stat(real).st_mode
    except OSError as error:
        raise ShareError(f"cannot include {host}: {error.strerror}") from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ShareError(f"cannot include {host}: it is neither a file nor a directory")
    if not os.access(real, os.R_OK):
        raise ShareError(f"cannot include {host}: you may not read it")
    return Include(real, guest)


def _real_directory(path: str) -> str:
    try:
        real = os.path.realpath(path, strict=True)
        mode = os.stat(real).st_mode
    except OSError as error:
        why = "it leads to itself by symbolic links" if error.errno == errno.ELOOP else error.strerror
        raise ShareError(f"cannot share {path}: {why}") from None
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
    if not os.access(real, os.R_OK | os.X_OK):
        raise ShareError(f"cannot share {path}: you may not read it")
    return real
