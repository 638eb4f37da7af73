"""The processes of a running domain, found below its supervisor."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def domain_processes(supervisor: int) -> list[int]:
    """Return every process below ``supervisor``."""
    found, todo = [], [supervisor]
    while todo:
        parent = todo.pop()
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                children = [int(word) for word in task.read_text().split()]
            except OSError:
                continue
            found += children
            todo += children
    return found


def kill_part(supervisor: int, name: str) -> None:
    """Kill the first process of this name; fails when there is none."""
    for pid in domain_processes(supervisor):
        if Path(f"/proc/{pid}/comm").read_text().strip().startswith(name[:15]):
            os.kill(pid, signal.SIGKILL)
            return
    raise AssertionError(f"no process {name}")
