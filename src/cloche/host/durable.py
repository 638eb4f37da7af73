"""Files that outlive a loss of power (layer 3a)."""

from __future__ import annotations

import os


def sync(path: str) -> None:
    """Wait until what a file holds, or the names in a directory, are on the disk.

    Raises:
        OSError: They do not get there.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
