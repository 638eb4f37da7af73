"""Telling a process from another one that had its number before (layer 3a)."""

from __future__ import annotations

import os


def stat_fields(pid: int) -> list[str]:
    """Return what follows the name in /proc/PID/stat (proc(5)): the state first, then the parent.

    Raises:
        FileNotFoundError, ProcessLookupError: There is no such process.
    """
    with open(f"/proc/{pid}/stat", "rb") as file:
        text = file.read().decode("utf-8", "surrogateescape")
    # The name may hold any character, parentheses and spaces too.
    return text[text.rindex(")") + 2 :].split()


def has_ended(fields: list[str]) -> bool:
    """Tell from its ``stat_fields`` whether a process has ended and is only waiting to be reaped.

    One whose first thread has ended is called a zombie as well; it lives on in the others.
    """
    return fields[0] in ("Z", "X") and int(fields[17]) <= 1


def start_time(pid: int) -> int | None:
    """Return when a process was started, in clock ticks since the host's boot; None when it does not exist."""
    try:
        return int(stat_fields(pid)[19])
    except (FileNotFoundError, ProcessLookupError):
        return None


def started_ago_s(start: int) -> float:
    """Return how many seconds ago a process was started that has this ``start_time``."""
    with open("/proc/uptime", "rb") as file:
        uptime_s = float(file.read().split()[0])
    return max(0.0, uptime_s - start / os.sysconf("SC_CLK_TCK"))
