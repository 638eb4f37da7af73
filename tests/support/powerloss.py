"""Losses of power: what a disk's process has written, from its system calls, and what a crash may leave of it."""

from __future__ import annotations

import re
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence
    from pathlib import Path

#: What a guest writes, at once and past all caches, when it knows something to be durable; a number follows.
MARK = b"cloche-mark "
_SECTOR = 512
#: The image's descriptor in the process (``drivers.qemu.disk``).
_IMAGE_FD = 4
_CALL = re.compile(r"^(\w+)\((\d+)(.*)\) += (\d+)$")
_PIECE = re.compile(r'iov_base="([^"]*)"')
_PUNCH, _ZERO = 3, 16


class Write(NamedTuple):
    """Bytes that were put at a place."""

    at: int
    data: bytes


class Flush(NamedTuple):
    """The kernel has said that everything before is durable."""


class Crash(NamedTuple):
    """A state after a loss of power.

    Attributes:
        kept: What of the log is on the disk, in its order.
        mark: The last mark that the guest had made before.
    """

    kept: tuple[Write, ...]
    mark: int


@contextmanager
def traced(pid: int, log: Path) -> Iterator[None]:
    """Write down what a process does to its files, from the moment when this begins."""
    words = (
        "-e",
        "trace=pwritev,pwrite64,fallocate,fdatasync",
        "-e",
        "signal=none",
        "-xx",
        "-s",
        str(4 << 20),
    )
    argv = ["strace", *words, "-o", str(log), "-p", str(pid)]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.readline()
    assert b"attached" in said, said
    try:
        yield
    finally:
        # It ends with the process that it looks at.
        process.wait(timeout=60)
        process.stderr.close()


def read_log(log: Path) -> list[Write | Flush]:
    """Return what was done to the image."""
    found: list[Write | Flush] = []
    for line in log.read_text().splitlines():
        match = _CALL.match(line)
        if match is None or int(match[2]) != _IMAGE_FD:
            continue
        call, rest, done = match[1], match[3], int(match[4])
        if call == "fdatasync":
            found.append(Flush())
        elif call == "fallocate":
            mode, offset, length = (int(word, 0) for word in _numbers(rest))
            assert mode in (_PUNCH, _ZERO), line
            found.append(Write(offset, bytes(length)))
        else:
            data = b"".join(bytes.fromhex(piece.replace("\\x", "")) for piece in _PIECE.findall(rest))
            offset = int(rest.rpartition(",")[2], 0)
            found.append(Write(offset, data[:done]))
    return found


def _numbers(rest: str) -> list[str]:
    modes = {
        "FALLOC_FL_KEEP_SIZE|FALLOC_FL_PUNCH_HOLE": str(_PUNCH),
        "FALLOC_FL_ZERO_RANGE": str(_ZERO),
    }
    return [modes.get(word.strip(), word.strip()) for word in rest.split(",")[1:]]


def mark_of(write: Write) -> int:
    """Return the number of a mark; -1 for what is none."""
    if not write.data.startswith(MARK):
        return -1
    return int(write.data[len(MARK) :].partition(b";")[0])


def crash(log: Sequence[Write | Flush], pick: random.Random) -> Crash:
    """Return what a loss of power at some moment leaves: all before the last flush, of the later writes any part."""
    moment = pick.randrange(len(log) + 1)
    flushed = max((place for place in range(moment) if isinstance(log[place], Flush)), default=-1)
    chance = pick.random()
    kept = []
    mark = -1
    for place, one in enumerate(log[:moment]):
        if isinstance(one, Flush):
            continue
        mark = max(mark, mark_of(one))
        if place < flushed:
            kept.append(one)
        elif pick.random() < chance:
            kept.append(_torn(one, pick) if pick.random() < 0.1 else one)
    return Crash(tuple(kept), mark)


def _torn(write: Write, pick: random.Random) -> Write:
    """Return the beginning or the end of a write."""
    cut = pick.randrange(len(write.data) // _SECTOR + 1) * _SECTOR
    return (
        Write(write.at, write.data[:cut]) if pick.random() < 0.5 else Write(write.at + cut, write.data[cut:])
    )


def put(image: Path, base: Path, state: Crash) -> None:
    """Make the image that a crash leaves."""
    subprocess.run(["cp", "--sparse=always", str(base), str(image)], check=True)
    with open(image, "r+b", buffering=0) as file:
        for at, data in state.kept:
            file.seek(at)
            file.write(data)
