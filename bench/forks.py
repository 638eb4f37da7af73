"""Forks and snapshots of a domain that runs Python with a heap of 50 MiB."""

from __future__ import annotations

import json
import os
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bench.prepare import CLOCHE
from bench.rounds import TIMEOUT_S, MeasureError

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEAP_MIB = 50
#: Makes its heap, says so, and then says a line for each second that has gone by.
_PROGRAM = (
    f"import os, time; heap = os.urandom({_HEAP_MIB} << 20); print('up', flush=True)\n"
    "while True: time.sleep(1); print(len(heap), flush=True)"
)
_MEMORY = "awk '/^Mem(Total|Free):/ {print $2}' /proc/meminfo"


def _run(*words: str) -> str:
    done = subprocess.run([str(CLOCHE), *words], capture_output=True, timeout=TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise MeasureError(done.stderr.decode("utf-8", "replace").strip()[-200:])
    return done.stdout.decode("utf-8", "replace")


@contextmanager
def parent() -> Iterator[str]:
    """Provide the name of such a domain."""
    name = f"bench-{os.getpid()}"
    _run("run", "--detach", "--name", name, "--", "python3", "-c", _PROGRAM)
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while not _run("logs", name).startswith("up"):
            if time.monotonic() > deadline:
                raise MeasureError("the program to be forked does not begin")
            time.sleep(0.1)
        yield name
    finally:
        _forget(name)


def _forget(name: str) -> None:
    for words in (("stop", "-t", "0", name), ("rm", name)):
        subprocess.run([str(CLOCHE), *words], capture_output=True, timeout=TIMEOUT_S, check=False)


def measure_fork(name: str) -> dict[str, float]:
    """Fork it: until the fork's guest has answered and its programs go on, and until another one has run there."""
    fork = f"{name}-fork"
    begin = time.monotonic()
    try:
        _run("fork", name, "--name", fork)
        answered = time.monotonic()
        _run("exec", fork, "true")
        return {"wall": answered - begin, "exec": time.monotonic() - begin}
    finally:
        _forget(fork)


def measure_snapshot(name: str) -> dict[str, float]:
    """Save it: how long that takes, and how much it takes on the disk of what its guest uses."""
    before = [int(word) for word in _run("exec", name, "sh", "-c", _MEMORY).split()]
    begin = time.monotonic()
    _run("snapshot", "save", name, name)
    seconds = time.monotonic() - begin
    try:
        (row,) = [row for row in json.loads(_run("snapshot", "list", "--json")) if row["name"] == name]
    finally:
        _run("snapshot", "delete", name)
    return {"wall": seconds, "saved": row["on_disk_mib"] * 1024 / (before[0] - before[1])}
