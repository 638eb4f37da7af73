"""Removing a directory that holds nothing but files (layer 3a)."""

from __future__ import annotations

import os


def remove_flat(directory: str) -> None:
    """Remove a directory with the files in it; what is gone already is no error.

    Where a link is in its place, the link goes, and what it leads to is not touched.

    Raises:
        OSError: Something in it is no file, or the file system refuses.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        os.unlink(directory)
        return
    try:
        for name in os.listdir(fd):
            os.unlink(name, dir_fd=fd)
        os.rmdir(directory)
    except FileNotFoundError:
        return  # somebody else does the same
    finally:
        os.close(fd)
