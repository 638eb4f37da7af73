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
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from bench import samples

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

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
    adopt_orphans()
    with tempfile.TemporaryFile() as said:
        begin = time.perf_counter()
        try:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said, env=env
            )
        except OSError as error:
            raise MeasureError(f"cannot start {argv[0]}: {error.strerror}") from error
        cpu = wait_for_end(process, TIMEOUT_S)
        wall = time.perf_counter() - begin
        if process.returncode not in statuses:
            raise MeasureError(f"ended with status {process.returncode}: {last_line(said)}")
    return {"wall": wall, "cpu": cpu + reap_orphans()}


def wait_for_end(process: subprocess.Popen[bytes], timeout_s: float) -> float:
    """Wait for a process without polling, set its ``returncode``, and return the CPU seconds of all it waited for.

    Raises:
        MeasureError: It did not end in time; it was killed.
    """
    end = _reap(process.pid, timeout_s)
    process.returncode = os.waitstatus_to_exitcode(end.status)
    if not end.in_time:
        raise MeasureError(f"did not end within {timeout_s:g} seconds")
    return end.cpu_s


def adopt_orphans() -> None:
    """Become the parent of what a candidate leaves behind (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise MeasureError(f"cannot adopt orphans: {os.strerror(ctypes.get_errno())}")


def reap_orphans() -> float:
    """Wait for every adopted process and return their CPU seconds.

    Raises:
        MeasureError: One did not end by itself; it was killed.
    """
    cpu = 0.0
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    while pids := children.read_text().split():
        name = Path(f"/proc/{pids[0]}/comm").read_text().strip()
        end = _reap(int(pids[0]), _ORPHANS_END_S)
        cpu += end.cpu_s
        if not end.in_time:
            raise MeasureError(f"left its process {name} behind")
    return cpu


class _End(NamedTuple):
    status: int
    cpu_s: float
    in_time: bool


def _reap(pid: int, timeout_s: float) -> _End:
    """Wait for a child, and kill it if it takes too long."""
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        in_time = bool(poll.poll(timeout_s * 1000))
        if not in_time:
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
