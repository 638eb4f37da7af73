"""What a running domain uses (layer 5): read from /proc by whoever asks, and asked of its guest."""

from __future__ import annotations

import os

from cloche.domain.control.client import Control
from cloche.domain.control.numbers import AskNumbers, GuestText
from cloche.errors import ClocheError
from cloche.host.pids import stat_fields
from cloche.host.procfs import descendants, pss_kib
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from cloche.host.rundir import Running

#: A guest that does not answer in time has no numbers, in seconds.
_PATIENCE_S = 5.0


class Numbers(Record):
    """What a domain uses, all its processes on the host together, its supervisor among them.

    Attributes:
        cpu_s: CPU time since it was started, in seconds.
        memory_kib: Memory, with what several share divided by them (PSS), the guest's own included.
        is_estimate: Whether some of that is resident memory (RSS), because the kernel does not tell the other.
        read_bytes, written_bytes: What was read from and written to storage; None where the kernel does not tell.
        processes: How many there are.
        guest: What the guest's kernel says of itself; None when it does not answer (a paused one, another program's).
    """

    cpu_s: float
    memory_kib: int
    is_estimate: bool
    read_bytes: int | None
    written_bytes: int | None
    processes: int
    guest: Guest | None


class Guest(Record):
    """What a guest says of itself; it may say anything.

    Attributes:
        up_s: Since when its kernel runs, in seconds.
        load: Its load of the last minute.
        memory_kib: Its memory.
        available_kib: What of that programs could still have.
    """

    up_s: float
    load: float
    memory_kib: int
    available_kib: int


def read_numbers(running: Running, *, guest: bool = True) -> Numbers:
    """Return what a running domain uses."""
    pids = list(descendants(running.warden))
    supervisor = _parent(running.warden)
    if supervisor > 1:
        pids.append(supervisor)
    ticks = memory = count = 0
    estimate = False
    traffic: list[tuple[int, int] | None] = []
    for pid in pids:
        try:
            fields = stat_fields(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        count += 1
        ticks += int(fields[11]) + int(fields[12])
        pss = pss_kib(pid)
        if pss is None:
            estimate = True
            pss = int(fields[21]) * (os.sysconf("SC_PAGE_SIZE") // 1024)
        memory += pss
        traffic.append(_traffic(pid))
    known = [one for one in traffic if one is not None]
    return Numbers(
        cpu_s=ticks / os.sysconf("SC_CLK_TCK"),
        memory_kib=memory,
        is_estimate=estimate,
        read_bytes=sum(one[0] for one in known) if known else None,
        written_bytes=sum(one[1] for one in known) if known else None,
        processes=count,
        guest=_ask_guest(running.ident) if guest else None,
    )


def _parent(pid: int) -> int:
    try:
        return int(stat_fields(pid)[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _traffic(pid: int) -> tuple[int, int] | None:
    try:
        with open(f"/proc/{pid}/io", "rb") as file:
            fields = dict(line.split(b": ") for line in file.read().splitlines())
        return int(fields[b"read_bytes"]), int(fields[b"write_bytes"])
    except (OSError, KeyError, ValueError):
        return None


def _ask_guest(ident: str) -> Guest | None:
    try:
        with Control(ident, _PATIENCE_S) as control:
            return read_guest(control.ask(AskNumbers(), GuestText).text)
    except ClocheError:
        return None


def read_guest(text: bytes) -> Guest | None:
    """Return the numbers in what a guest says: /proc/uptime, loadavg and meminfo. None where there are none."""
    lines = text.split(b"\n")
    try:
        up, load = float(lines[0].split()[0]), float(lines[1].split()[0])
        memory = {}
        for line in lines[2:]:
            name, _, value = line.partition(b":")
            if name in (b"MemTotal", b"MemAvailable"):
                memory[name] = int(value.split()[0])
        total, available = memory[b"MemTotal"], memory[b"MemAvailable"]
    except (IndexError, ValueError, KeyError):
        return None
    if not (0 <= up < 1e12 and 0 <= load < 1e9 and 0 <= available <= total < 1 << 50):
        return None
    return Guest(up, load, total, available)
