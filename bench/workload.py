"""What guests are given to do: which files of the host's /usr they read, and how (chosen anew on each host)."""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Names that need no quoting for xargs or sh.
_PLAIN = re.compile(r"[\w./+:@%,=-]+", re.ASCII)
_SMALL_BYTES = 8192
_LARGEST_BYTES = 64 << 20
_LARGE_PLACES = ("/usr/bin", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib")


class Workload(NamedTuple):
    """What one guest does in its life.

    Attributes:
        tree: A directory of /usr that is walked, ``entries`` names with itself.
        small: Paths of files of at most 8 KiB outside ``tree``, ``small_bytes`` in sum.
        large: One large file, of ``large_bytes``.
        round_trips: How many single bytes are sent and waited for.
        stream_bytes: How much then goes in and out at once.
    """

    tree: str
    entries: int
    small: tuple[str, ...]
    small_bytes: int
    large: str
    large_bytes: int
    round_trips: int
    stream_bytes: int


def choose(entries: int, small: int, round_trips: int, stream_bytes: int, usr: str = "/usr") -> Workload:
    """Return a workload of about this size from what the host has.

    The tree is the smallest one at most two levels below /usr with as many entries; the small files are the first
    ones in alphabetical order; the large file is the largest of up to 64 MiB among programs and libraries.
    """
    tree, counted = _choose_tree(usr, entries)
    files = _first_small_files(usr, tree, small)
    large, large_bytes = _choose_large(tuple(place.replace("/usr", usr, 1) for place in _LARGE_PLACES))
    return Workload(
        tree=tree,
        entries=counted,
        small=tuple(path for path, _ in files),
        small_bytes=sum(size for _, size in files),
        large=large,
        large_bytes=large_bytes,
        round_trips=round_trips,
        stream_bytes=stream_bytes,
    )


def script(work: Workload, end: str = "") -> str:
    """Return the shell script for a guest.

    It reads the names of the small files from standard input, says ``@N`` on standard output after its N-th step, and
    then becomes ``cat``. It is short, for virtme-ng passes it in the kernel's command line. ``end`` is done at the end.
    """
    steps = (
        f"head -n {len(work.small)}>/tmp/names",
        f"find {work.tree} -xdev|wc -l",
        f"find {work.tree} -xdev|wc -l",
        "xargs cat</tmp/names|wc -c",
        "xargs cat</tmp/names|wc -c",
        f"cat {work.large}>/dev/null",
    )
    marked = ";".join(f"{step};echo @{number}" for number, step in enumerate(steps, 1))
    return f"echo @0;{marked};cat" + (f";{end}" if end else "")


#: What the steps of the script are called, from the first on that is measured.
STEPS = ("tree walk", "tree walk again", "small files", "small files again", "large file")


def _choose_tree(usr: str, wanted: int) -> tuple[str, int]:
    counts: dict[str, int] = {}
    for top in _directories(usr):
        for below in _directories(top):
            counts[below] = _count(below)
    fitting = [(count, path) for path, count in counts.items() if count >= wanted and _PLAIN.fullmatch(path)]
    if not fitting:
        return usr, _count(usr)
    count, path = min(fitting)
    return path, count


def _directories(path: str) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))


def _count(path: str) -> int:
    device = os.lstat(path).st_dev
    total = 1
    for place, directories, files in os.walk(path):
        total += len(directories) + len(files)
        directories[:] = [
            name for name in directories if os.lstat(os.path.join(place, name)).st_dev == device
        ]
    return total


def _first_small_files(usr: str, without: str, wanted: int) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    for path, size in _plain_files(usr, without):
        if len(found) == wanted:
            break
        if 0 < size <= _SMALL_BYTES:
            found.append((path, size))
    return found


def _plain_files(usr: str, without: str) -> Iterator[tuple[str, int]]:
    for place, directories, files in os.walk(usr):
        directories[:] = sorted(name for name in directories if os.path.join(place, name) != without)
        for name in sorted(files):
            path = os.path.join(place, name)
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IROTH and _PLAIN.fullmatch(path):
                yield path, status.st_size


def _choose_large(places: tuple[str, ...]) -> tuple[str, int]:
    best = ("", 0)
    for place in places:
        if not os.path.isdir(place):
            continue
        with os.scandir(place) as entries:
            for entry in entries:
                if not entry.is_file(follow_symlinks=False) or not _PLAIN.fullmatch(entry.path):
                    continue
                size = entry.stat(follow_symlinks=False).st_size
                if best[1] < size <= _LARGEST_BYTES:
                    best = (entry.path, size)
    return best
