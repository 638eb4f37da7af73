"""Noticing that the host's system was changed below a profile (layer 3a): some looks, nothing is read.

What a package manager does changes its own records and the directories it puts files into.
"""

from __future__ import annotations

import os
import zlib

from cloche.host.profile_place import OUTDATED

#: Records of package managers, and directories in which every package of some size has something.
_PLACES = (
    "/var/lib/dpkg/status",
    "/var/lib/rpm",
    "/usr/lib/sysimage/rpm",
    "/var/lib/pacman/local",
    "/lib/apk/db/installed",
    "/nix/var/nix/profiles",
    "/etc/ld.so.cache",
    "/usr/bin",
    "/usr/sbin",
    "/usr/lib",
    "/usr/lib64",
    "/usr/share",
    "/opt",
)
_FILE = "tree"


def fingerprint(root: str = "") -> str:
    """Return a word for how the system below ``root`` is."""
    seen = []
    for path in _PLACES:
        try:
            status = os.stat(root + path)
        except OSError:
            continue
        seen.append((path, status.st_ino, status.st_size, status.st_mtime_ns))
    return f"{zlib.crc32(repr(seen).encode()):08x}"


def has_changed(directory: str, now: str) -> bool:
    """Note the fingerprint in a profile's directory; tell whether it had another one when it was last started.

    If so the profile is outdated (``is_outdated``), until a start of it has ended well.

    Raises:
        OSError: It cannot be noted.
    """
    path = os.path.join(directory, _FILE)
    try:
        with open(path, encoding="ascii") as file:
            before = file.read(64).strip()
    except (OSError, UnicodeDecodeError):
        before = ""
    if before == now:
        return False
    if before:
        with open(os.path.join(directory, OUTDATED), "ab"):
            pass
    fresh = f"{path}.{os.getpid()}"
    with open(fresh, "w", encoding="ascii") as file:
        file.write(f"{now}\n")
    os.replace(fresh, path)
    return bool(before)


def is_outdated(directory: str) -> bool:
    """Tell whether a profile may hold caches of an older system."""
    return os.path.lexists(os.path.join(directory, OUTDATED))
