"""The processes of a running domain, found below its supervisor."""

from __future__ import annotations

import os
import signal
from pathlib import Path

#: Ends the names of domains that tests start: several checkouts may be tested at once, in the name of one user.
OWN = f"-{os.getpid()}"


def domain_processes(supervisor: int) -> list[int]:
    """Return every process below ``supervisor``."""
    found, todo = [], [supervisor]
    while todo:
        parent = todo.pop()
        try:
            texts = [task.read_text() for task in Path(f"/proc/{parent}/task").glob("*/children")]
        except OSError:
            continue  # it has ended meanwhile
        children = [int(word) for text in texts for word in text.split()]
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
