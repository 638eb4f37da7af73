"""Keys and stamps: how a stage knows that it has nothing to do."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from setuplib.ui import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Where the stamps are, but those that lie inside what they vouch for.
STAMPS = os.path.join(ROOT, "build", "stamps")


def is_fresh(stamp: str, key: str) -> bool:
    """Whether the stamp's file holds exactly this key."""
    try:
        with open(stamp, encoding="utf-8") as file:
            return file.read() == key
    except (OSError, UnicodeDecodeError):
        return False


def write_stamp(stamp: str, key: str) -> None:
    """Write the stamp, whole or not at all."""
    replace_file(stamp, key.encode(), 0o644)


def replace_file(path: str, content: bytes, mode: int) -> None:
    """Write a file under another name and rename it, so that nobody ever sees half of it."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    fresh = f"{path}.{os.getpid()}.new"
    with open(fresh, "wb") as file:
        file.write(content)
    os.chmod(fresh, mode)
    os.replace(fresh, path)


def signature(path: str) -> str:
    """Return what changes when a file outside the project changes: its size and time, or ``missing``."""
    try:
        stat = os.stat(path)
    except OSError:
        return f"{path} missing"
    return f"{path} {stat.st_size} {stat.st_mtime_ns}"


def hash_files(paths: Iterable[str]) -> str:
    """Return the SHA-256 (hex) of the names and contents of files and of everything below directories.

    A path that does not exist counts as that. Build products below a directory (``target``, ``__pycache__``) do not.
    """
    import hashlib

    digest = hashlib.sha256()
    for path in sorted(_walk(paths)):
        digest.update(f"{path}\0".encode(errors="surrogateescape"))
        try:
            with open(path, "rb") as file:
                content = file.read()
        except OSError:
            digest.update(b"missing")
        else:
            digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def _walk(paths: Iterable[str]) -> Iterator[str]:
    """Yield the files, directories replaced by what is below them."""
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        for directory, names, files in os.walk(path):
            names[:] = [name for name in names if name not in ("target", "__pycache__")]
            for name in files:
                yield os.path.join(directory, name)
