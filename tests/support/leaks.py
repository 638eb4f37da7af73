"""Finding processes of domains that outlived the test session.

Other people's domains may run on the same machine, so a process counts as ours only if it descends from this pytest,
or has lost its parent after this session began: then it hangs below init (or another adopter that is an ancestor of
ours too), and the topmost process of its branch is itself one of the programs a domain consists of. Detached domains
hang below init by nature: those of a test session say so in their environment, and those of a person say nothing.
"""

from __future__ import annotations

import os
import select
from pathlib import Path
from time import monotonic
from typing import NamedTuple

#: The programs a domain consists of, as the kernel names their processes (at most 15 characters).
DOMAIN_PROGRAMS = (
    "qemu-system-x86",
    *(
        "cloche-warden",
        "cloche-fs",
        "cloche-disk",
        "cloche-net",
        "cloche-rng",
        "cloche-vsock",
        "cloche-bundle",
        "cloche-agent",
        "cloche",
    ),
)
#: What may stand between one of them and init when its starter is gone: those and the interpreter of a supervisor.
_ORPHAN_TOPS = (*DOMAIN_PROGRAMS, "python3", "python3.11", "bwrap")


#: The variable that names a session to everything it starts.
SESSION = "CLOCHE_TEST_SESSION"


class Process(NamedTuple):
    """One line of the process table; ``start`` tells two processes apart that had the same id."""

    pid: int
    parent: int
    name: str
    start: int

    def __str__(self) -> str:
        try:
            line = (
                Path(f"/proc/{self.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
        except OSError:
            line = ""
        return f"{self.pid} {self.name}: {line[:200]}"


def processes() -> dict[int, Process]:
    """Return all living processes that can be seen, by id (a zombie has ended: it is not among them)."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            text = Path(f"/proc/{entry}/stat").read_text(errors="replace")
        except OSError:
            continue  # it ended meanwhile
        # The name is in parentheses and may hold any character, parentheses and spaces too.
        name = text[text.index("(") + 1 : text.rindex(")")]
        fields = text[text.rindex(")") + 2 :].split()
        if fields[0] not in "ZX":
            found[int(entry)] = Process(int(entry), int(fields[1]), name, int(fields[19]))
    return found


def leaked(before: dict[int, Process], now: dict[int, Process], own_pid: int) -> list[Process]:
    """Return the processes of domains that this session (``own_pid`` is pytest) has left behind.

    Args:
        before: The process table when the session began.
        now: The process table of this moment.
        own_pid: The id of the session's process.
    """
    own_branch = set(_ancestors(own_pid, now))
    old = set(before.values())
    found = []
    for process in now.values():
        if process.name not in DOMAIN_PROGRAMS or process in old or process.pid in own_branch:
            continue
        line = _ancestors(process.pid, now)
        if own_pid in line:
            found.append(process)
            continue
        # The topmost process of the branch that is not above this session as well.
        top = now[next((pid for pid in reversed(line) if pid not in own_branch), process.pid)]
        if top not in old and top.name in _ORPHAN_TOPS and not _is_of_another(top, own_pid):
            found.append(process)
    return found


def _is_of_another(top: Process, own_pid: int) -> bool:
    """Tell whether a process says that another session has started it, or a command line that says nothing of any."""
    try:
        variables = Path(f"/proc/{top.pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    living = processes().get(top.pid)
    if living is None or living.start != top.start:
        return False
    sessions = [word.partition(b"=")[2] for word in variables if word.startswith(f"{SESSION}=".encode())]
    return sessions != [b"%d" % own_pid] and (bool(sessions) or top.name == "cloche")


def wait_for_end(candidates: list[Process], timeout_s: float) -> list[Process]:
    """Wait until the processes have ended; return those that have not."""
    deadline = monotonic() + timeout_s
    poll = select.poll()
    fds: dict[int, Process] = {}
    for process in candidates:
        try:
            fd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            continue
        if processes().get(process.pid) != process:  # the id was given to another one meanwhile
            os.close(fd)
            continue
        fds[fd] = process
        poll.register(fd, select.POLLIN)
    while fds and (left := deadline - monotonic()) > 0:
        for fd, _ in poll.poll(left * 1000):
            poll.unregister(fd)
            os.close(fd)
            del fds[fd]
    for fd in fds:
        os.close(fd)
    return list(fds.values())


def _ancestors(pid: int, table: dict[int, Process]) -> list[int]:
    """Return the process, its parent, and so on upwards."""
    line = []
    while pid in table and pid not in line:
        line.append(pid)
        pid = table[pid].parent
    return line
