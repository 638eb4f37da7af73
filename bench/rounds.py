"""Candidates take turns, so that whatever else the machine does meets all of them alike."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from bench import samples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

#: No measurement takes longer; a guest that hangs is ended. In seconds.
TIMEOUT_S = 180
#: What a candidate leaves behind must end within this time. In seconds.
_ORPHANS_END_S = 10.0
_PR_SET_CHILD_SUBREAPER = 36


class MeasureError(Exception):
    """A candidate could not be measured; the text says why."""


class Candidate(NamedTuple):
    """Something to measure.

    Attributes:
        name: Its line in the tables.
        measure: Does it once and returns metrics.
        every: Takes part in every n-th round only, because it is slow.
    """

    name: str
    measure: Callable[[], Mapping[str, float]]
    every: int = 1


class Outcome(NamedTuple):
    """What the rounds gave: samples, and for candidates that failed the reason."""

    samples: samples.Samples
    failures: dict[str, str]


def take_turns(
    candidates: Sequence[Candidate], rounds: int, budget_s: float, *, warm_up: bool = True
) -> Outcome:
    """Measure the candidates in turn, ``rounds`` times or until the time is used up, but each at least once.

    Each round begins with another candidate. A round that is not counted comes first (``warm_up``): it brings files
    into the page cache. A candidate that fails is out of the game; its earlier samples stay.
    """
    outcome = Outcome({}, {})
    begin = time.monotonic()
    first = -1 if warm_up else 0
    for number in range(first, rounds):
        if number > 0 and time.monotonic() - begin > budget_s:
            break
        start = number % len(candidates) if candidates else 0
        for candidate in (*candidates[start:], *candidates[:start]):
            if candidate.name in outcome.failures or (number > 0 and number % candidate.every):
                continue
            if number < 0 and candidate.every > 1:
                continue  # The slow ones read much the same files as the fast ones.
            progress(f"round {max(number + 1, 0)} of {rounds}: {candidate.name}")
            try:
                metrics = candidate.measure()
            except MeasureError as error:
                outcome.failures[candidate.name] = str(error)
                continue
            if number >= 0:
                samples.add(outcome.samples, candidate.name, metrics)
    progress("")
    return outcome


def run_to_exit(
    argv: Sequence[str], env: Mapping[str, str] | None = None, statuses: Sequence[int] = (0,)
) -> dict[str, float]:
    """Run a program with nothing on its standard streams and return seconds of wall clock and of CPU time.

    ``statuses`` are those it may end with. The wall clock stops at its own exit. The CPU time is that of all it
    started; what it left behind is waited for before this returns, so that it is no burden to the next candidate.

    Raises:
        MeasureError: It could not be started, hung, failed, or left something behind that does not end.
    """
    with tempfile.TemporaryFile() as said, adopted_orphans() as reap:
        begin = time.perf_counter()
        process = start(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said, env=env)
        cpu = wait_for_end(process, TIMEOUT_S)
        wall = time.perf_counter() - begin
        if process.returncode not in statuses:
            raise MeasureError(f"ended with status {process.returncode}: {last_line(said)}")
        return {"wall": wall, "cpu": cpu + reap()}


def start(
    argv: Sequence[str],
    *,
    stdin: int,
    stdout: int,
    stderr: IO[bytes],
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a candidate in a process group of its own, so that all of it can be killed at once.

    Raises:
        MeasureError: There is no such program.
    """
    try:
        return subprocess.Popen(argv, stdin=stdin, stdout=stdout, stderr=stderr, env=env, process_group=0)
    except OSError as error:
        raise MeasureError(f"cannot start {argv[0]}: {error.strerror}") from error


def wait_for_end(process: subprocess.Popen[bytes], timeout_s: float) -> float:
    """Wait for a process without polling, set its ``returncode``, and return the CPU seconds of all it waited for.

    Raises:
        MeasureError: It did not end in time; it was killed.
    """
    end = _reap(process.pid, timeout_s, group=True)
    process.returncode = os.waitstatus_to_exitcode(end.status)
    if not end.in_time:
        raise MeasureError(f"did not end within {timeout_s:g} seconds")
    return end.cpu_s


@contextmanager
def adopted_orphans() -> Iterator[Callable[[], float]]:
    """Be the parent of what candidates leave behind (prctl(2), PR_SET_CHILD_SUBREAPER).

    Gives a function that waits for all that was left behind since then and returns its CPU seconds; it raises
    ``MeasureError`` if one of these processes does not end by itself, and kills it.
    """
    before = _children()
    _set_subreaper(1)
    try:
        yield lambda: _reap_all_but(before)
    finally:
        _set_subreaper(0)


def _set_subreaper(value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, value, 0, 0, 0):
        raise MeasureError(f"cannot adopt orphans: {os.strerror(ctypes.get_errno())}")


def _children() -> frozenset[int]:
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    return frozenset(map(int, children.read_text().split()))


def _reap_all_but(known: frozenset[int]) -> float:
    cpu = 0.0
    while left := _children() - known:
        pid = min(left)
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        end = _reap(pid, _ORPHANS_END_S)
        cpu += end.cpu_s
        if not end.in_time:
            raise MeasureError(f"left its process {name} behind")
    return cpu


class _End(NamedTuple):
    status: int
    cpu_s: float
    in_time: bool


def _reap(pid: int, timeout_s: float, *, group: bool = False) -> _End:
    """Wait for a child, and kill it, or all of its process group, if it takes too long."""
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        in_time = bool(poll.poll(timeout_s * 1000))
        if not in_time and group:
            os.killpg(pid, signal.SIGKILL)
        elif not in_time:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
    finally:
        os.close(pidfd)
    return _End(status, usage.ru_utime + usage.ru_stime, in_time)


def last_line(said: IO[bytes]) -> str:
    """Return the last line that was written to a file, for a message."""
    said.seek(max(0, said.seek(0, os.SEEK_END) - 4096))
    lines = said.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:200] if lines else "it said nothing"


def progress(text: str) -> None:
    """Show what is being done: one line that is written over on a terminal, plain lines elsewhere."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
    elif text:
        sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
