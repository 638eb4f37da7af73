"""What somebody tries who wants at another user's domains, run as that somebody; prints what was reached, as JSON.

It is given paths, and process ids, on its input. For each path: the names in a directory, the first byte of a file, a
connection to a socket and a request to whoever listens. For each process: what only its owner may see or do.
"""

# ruff: noqa: T201

from __future__ import annotations

import json
import os
import socket
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Asks a supervisor how it is: the number of a request without fields (``cloche.domain.control.wire``).
QUESTION = bytes.fromhex(sys.argv[1])
_PATIENCE_S = 20


def reach_path(path: str) -> str:
    """Return how far somebody gets with a path; raises OSError for not at all."""
    kind = stat.S_IFMT(os.stat(path).st_mode)
    if kind == stat.S_IFDIR:
        return f"listed: {sorted(os.listdir(path))}"
    if kind == stat.S_IFSOCK:
        return reach_socket(path)
    with open(path, "rb") as file:
        file.read(1)
    return "read"


def reach_socket(path: str) -> str:
    """Return what a supervisor answers; who is sent away has reached nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as raw:
        raw.settimeout(_PATIENCE_S)
        raw.connect(path)
        raw.send(QUESTION)
        answer = raw.recv(1 << 16)
    if not answer:
        raise ConnectionResetError
    return "answered"


def reach_process(pid: int) -> list[str]:
    """Return what of a process is open to somebody."""
    found = []
    attempts: dict[str, Callable[[], object]] = {
        "environ": lambda: Path(f"/proc/{pid}/environ").read_bytes(),
        "mem": lambda: os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY)),
        "maps": lambda: Path(f"/proc/{pid}/maps").read_bytes(),
        "fd": lambda: os.listdir(f"/proc/{pid}/fd"),
        "root": lambda: os.listdir(f"/proc/{pid}/root"),
        "signal": lambda: os.kill(pid, 0),
    }
    for name, attempt in attempts.items():
        try:
            attempt()
        except OSError:
            continue
        found.append(name)
    return found


def main() -> None:
    """Try all of it."""
    asked = json.load(sys.stdin)
    reached: dict[str, object] = {}
    for path in asked["paths"]:
        try:
            reached[path] = reach_path(path)
        except OSError:
            continue
    for pid in asked["pids"]:
        if found := reach_process(pid):
            reached[str(pid)] = found
    print(json.dumps(reached))


main()
