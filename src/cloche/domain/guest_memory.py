"""The file of a guest's memory (layer 5), in a tmpfs of its VMM's own root: made, mapped and filled from outside.

The kernel lets the caller in, who owns the domain's user namespace. The VMM may be making the file at the same time:
whoever comes first has made it.
"""

from __future__ import annotations

import mmap
import os

from cloche.host.sparse import PIECE, extents
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: madvise(2), since Linux 5.14; not among Python's names before 3.13.
_POPULATE_WRITE = 23


class GuestMemory:
    """Such a file, open and mapped. ``close`` lets it go; what is in it stays."""

    def __init__(self, directory: int, name: bytes, size: int) -> None:
        """Make the file ``name`` in a directory, with nothing in it, unless it is there.

        Raises:
            OSError: It cannot be made.
        """
        target = _make(directory, name, size)
        try:
            self._mapped = mmap.mmap(target, size)
        finally:
            os.close(target)
        # In huge pages, where the kernel has them: one copy, and few faults.
        self._advise(getattr(mmap, "MADV_HUGEPAGE", None), 0, size)

    def _advise(self, advice: int | None, begin: int, end: int) -> None:
        if advice is None:
            return
        try:
            self._mapped.madvise(advice, begin, end - begin)
        except OSError:
            return  # this kernel does not know it: the pages come when they are written to, and small ones do

    def make_ready(self, parts: Iterable[tuple[int, int]]) -> None:
        """Have the pages for these parts, begin and end of each, before there is something to fill them with."""
        size = len(self._mapped)
        for begin, end in parts:
            if begin % mmap.PAGESIZE == 0 and begin < end <= size:
                self._advise(_POPULATE_WRITE, begin, end)

    def fill(self, source: int) -> None:
        """Copy a file into it; what is a hole there stays one, but for the rest of a huge page.

        Raises:
            OSError: There is no room for it.
        """
        size = os.fstat(source).st_size
        with memoryview(self._mapped) as view:
            for begin, end in extents(source, size):
                at = begin
                while at < end:
                    with view[at : min(at + PIECE, end)] as piece:
                        count = os.preadv(source, [piece], at)
                    if not count:
                        raise OSError(5, "it became shorter")
                    at += count

    def close(self) -> None:
        """Let it go."""
        self._mapped.close()


def _make(directory: int, name: bytes, size: int) -> int:
    """Open the file. The VMM may just be making it; it must find it with its size, or not at all."""
    mine = b"%s-%d" % (name, os.getpid())
    target = os.open(mine, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        os.ftruncate(target, size)
        # Root's VMM has an id of its own.
        owner = os.stat(b".", dir_fd=directory)
        os.fchown(target, owner.st_uid, owner.st_gid)
        try:
            os.link(mine, name, src_dir_fd=directory, dst_dir_fd=directory)
        except FileExistsError:
            os.close(target)
            target = -1
            target = os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
            # Its maker may not have come that far.
            os.ftruncate(target, size)
        os.unlink(mine, dir_fd=directory)
    except BaseException:
        if target >= 0:
            os.close(target)
        raise
    return target
