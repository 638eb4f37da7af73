"""How much memory domains take: the kernel's proportional set size (PSS) of every process, mapping by mapping.

A page that several processes map counts for each with its share only, so sums are true. Guest memory is told from the
rest by its name: raw QEMU keeps it in a file of that name without a link, cloche's in one that its jail shows, and the
file server maps the same one.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.rounds import TIMEOUT_S, MeasureError, adopted_orphans, last_line, start

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_GUEST = ("/qemu_back_mem.", "/memory/ram")
READY = b"ready"


class GuestError(Exception):
    """A guest did not become ready."""


class ProcessMemory(NamedTuple):
    """One process: its name, and MiB of PSS with and without the guest's memory."""

    name: str
    pid: int
    guest_mib: float
    private_mib: float


def measure(argv: Sequence[str], count: int) -> dict[str, float]:
    """Start ``count`` domains, wait until each says it is ready, and return MiB a domain.

    ``qemu`` is QEMU without guest memory, ``others`` all other processes without it, ``guest`` the guest's memory,
    ``total`` all of that.

    Raises:
        MeasureError: A domain did not come up, or its processes may not be looked at.
    """
    with adopted_orphans() as reap:
        with ExitStack() as stack:
            processes = [stack.enter_context(running(argv)) for _ in range(count)]
            for process in processes:
                wait_until_ready(process)
            found = [memory for process in processes for memory in family(process.pid)]
        reap()
    qemu = [memory for memory in found if memory.name.startswith("qemu")]
    if len(qemu) != count:
        raise MeasureError(f"{count} domains have {len(qemu)} processes of QEMU")
    return {
        "qemu": sum(memory.private_mib for memory in qemu) / count,
        "others": sum(memory.private_mib for memory in found if memory not in qemu) / count,
        "guest": sum(memory.guest_mib for memory in found) / count,
        "total": sum(memory.guest_mib + memory.private_mib for memory in found) / count,
    }


@contextmanager
def running(argv: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start something whose guest says ``ready`` and then waits, and end it at last."""
    with (
        tempfile.TemporaryFile() as said,
        start(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said) as process,
    ):
        try:
            yield process
        except GuestError as error:
            os.killpg(process.pid, signal.SIGKILL)
            raise MeasureError(f"{error}: {last_line(said)}") from error
        finally:
            process.terminate()
            process.wait()


def wait_until_ready(process: subprocess.Popen[bytes]) -> None:
    """Wait for the guest's word.

    Raises:
        GuestError: It did not come.
    """
    assert process.stdout is not None
    fd = process.stdout.fileno()
    heard = b""
    while READY not in heard:
        if not select.select([fd], [], [], TIMEOUT_S)[0]:
            raise GuestError("the guest did not come up")
        block = os.read(fd, 4096)
        if not block:
            raise GuestError("the guest ended")
        heard += block


def family(pid: int) -> list[ProcessMemory]:
    """Return the memory of a process and of all its descendants.

    Raises:
        MeasureError: One of them may not be looked at.
    """
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            parent = _parent(entry)
            if parent:
                children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        waiting += children.get(one, [])
        found.append(_memory(one))
    return found


def _parent(process: Path) -> int:
    try:
        # Field 4 of stat(5); the name before it may hold anything, spaces and brackets included.
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _memory(pid: int) -> ProcessMemory:
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        guest, private = split_pss(Path(f"/proc/{pid}/smaps").read_text())
    except OSError as error:
        # cloche's jailed processes cannot be looked into by anybody but root, their own user included.
        why = "only root can look at it" if isinstance(error, PermissionError) else error.strerror
        raise MeasureError(f"process {pid}: {why}") from error
    return ProcessMemory(name, pid, guest / 1024, private / 1024)


def split_pss(smaps: str) -> tuple[int, int]:
    """Return KiB of guest memory and of everything else from the text of ``/proc/PID/smaps`` (proc_pid_smaps(5))."""
    guest = other = 0
    is_guest = False
    for line in smaps.splitlines():
        key, _, value = line.partition(" ")
        if not key.endswith(":"):
            # The head of a mapping: ADDRESSES PERMISSIONS OFFSET DEVICE INODE PATH
            path = line.split(maxsplit=5)[-1]
            is_guest = any(name in path for name in _GUEST)
        elif key == "Pss:":
            amount = int(value.split()[0])
            guest, other = (guest + amount, other) if is_guest else (guest, other + amount)
    return guest, other
