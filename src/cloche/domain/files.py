"""Opening the files that a domain's processes are given (layer 5): before any process exists, and locked."""

from __future__ import annotations

import fcntl
import os

from cloche.errors import DiskError
from cloche.host.xdg import ensure_directory
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container

    from cloche.model.plan import OpenFile, ProcessPlan


def open_files(processes: tuple[ProcessPlan, ...], besides: Container[OpenFile] = ()) -> dict[OpenFile, int]:
    """Open and lock every file of a plan but those that are open already.

    The locks belong to the open files, not to this process: they last until the last process that has them is gone.

    Raises:
        DiskError: One cannot be opened, or somebody else uses it.
    """
    opened: dict[OpenFile, int] = {}
    try:
        for process in processes:
            for file in process.files:
                if file in besides:
                    continue
                opened[file] = _open(file)
    except BaseException:
        for fd in opened.values():
            os.close(fd)
        raise
    return opened


def _open(file: OpenFile) -> int:
    if file.copied:
        return _copy(file)
    if file.empty_bytes:
        return _make_empty(file)
    flags = (os.O_RDWR if file.writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(file.path, flags)
    except OSError as error:
        raise DiskError(f"cannot open {file.path}: {error.strerror}") from None
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if file.writable else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise DiskError(
            f"cannot use {file.path}: another domain has it",
            hint="Several can read it if all of them say ,ro.",
        ) from None
    except OSError as error:
        os.close(fd)
        raise DiskError(f"cannot lock {file.path}: {error.strerror}") from None
    return fd


def _make_empty(file: OpenFile) -> int:
    """Return a new, sparse file without a name."""
    directory = ensure_directory(os.path.dirname(file.path))
    try:
        fd = _make_nameless(directory)
        try:
            os.truncate(fd, file.empty_bytes)
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise DiskError(
            f"cannot make an empty disk of {file.empty_bytes} bytes in {directory}: {error.strerror}",
            hint="A smaller one, or XDG_CACHE_HOME on another file system.",
        ) from None
    return fd


def _make_nameless(directory: str) -> int:
    # Not every file system can make a file without a name at once.
    path = os.path.join(directory, f".new-{os.urandom(8).hex()}")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.unlink(path)
    return fd


def _copy(file: OpenFile) -> int:
    """Return a copy beside a file, which has no name any more when this returns."""
    from cloche.host.sparse import copy_file, run_through

    try:
        source = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fd = _make_nameless(os.path.dirname(os.path.dirname(file.path)))
            try:
                run_through(copy_file(source, fd))
            except BaseException:
                os.close(fd)
                raise
        finally:
            os.close(source)
    except OSError as error:
        raise DiskError(
            f"cannot copy {file.path}: {error.strerror}", hint="Free some space beside it."
        ) from None
    return fd
