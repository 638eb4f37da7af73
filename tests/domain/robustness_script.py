"""What test_robustness runs in one host program of the ordinary user's: domains that come and go, of every kind.

It prints what the program itself has, once some have come and gone and once all have.
"""

# ruff: noqa: T201

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import cloche

#: So many of each kind before the first look: modules are imported, pools of memory filled, the kernel known.
_WARM_UP = 3


def from_the_command_line(number: int) -> None:
    """A program of the caller's, on pipes."""
    done = subprocess.run([PROGRAM, "cat"], input=b"%d" % number, capture_output=True, check=True)
    assert done.stdout == b"%d" % number, done


def in_a_sandbox(number: int) -> None:
    """A machine for this program alone."""
    with cloche.Sandbox() as box:
        assert box.check_output(["expr", str(number), "+", "1"], text=True) == f"{number + 1}\n"


def detached(number: int) -> None:
    """One that has a name, is joined, stopped and forgotten."""
    domain = cloche.Domain.start(["sleep", "600"], name=f"many-{os.getpid()}")
    assert domain.run(["echo", str(number)], stdout=cloche.PIPE).stdout == b"%d\n" % number
    domain.stop(0)
    domain.remove()


def killed(number: int) -> None:
    """One whose supervisor is killed as soon as its program runs."""
    del number
    with subprocess.Popen([PROGRAM, "sh", "-c", "echo up; exec sleep 600"], stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"up\n"
        run.kill()


KINDS = (from_the_command_line, in_a_sandbox, detached, killed)


def numbers() -> dict[str, object]:
    """Return what this program has open, how many threads, and its memory in MiB."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:"))
    return {
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "children": Path(f"/proc/self/task/{os.getpid()}/children").read_text().split(),
        "mib": resident >> 10,
    }


def main() -> None:
    """Let them come and go."""
    for number in range(_WARM_UP * len(KINDS)):
        KINDS[number % len(KINDS)](number)
    # Sweeps up what was left by the last one that was killed.
    subprocess.run([PROGRAM, "true"], check=True)
    print(json.dumps(numbers()), flush=True)
    sys.stdin.readline()
    for number in range(COUNT):
        KINDS[number % len(KINDS)](number)
    subprocess.run([PROGRAM, "true"], check=True)
    print(json.dumps(numbers()), flush=True)
    sys.stdin.readline()


PROGRAM, COUNT = sys.argv[1], int(sys.argv[2])
main()
