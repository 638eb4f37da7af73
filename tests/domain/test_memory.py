"""Memory that a guest has used and does not use any more goes back to the host."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from support.domains import domain_processes

if TYPE_CHECKING:
    from support.runs import Runner

_MIB = 1 << 20
_TAKEN_MIB = 300
#: Takes memory, says so, gives it back when it is told to, and then says something four times a second.
_PROGRAM = f"""
import time
taken = b"a" * ({_TAKEN_MIB} << 20)
print("taken", flush=True)
input()
del taken
while True:
    print("given back", flush=True)
    time.sleep(0.25)
"""
#: The kernel tells of free pages after two seconds, and of a part of them at a time; the twin has had ten seconds.
_LINES, _LINES_OF_THE_TWIN = 240, 40


def _memory_mib(supervisor: int) -> int:
    """Return how much of the guest's memory there is on the host."""
    for pid in domain_processes(supervisor):
        try:
            return os.stat(f"/proc/{pid}/root/memory/ram").st_blocks * 512 // _MIB
        except OSError:
            continue  # not the VMM
    raise AssertionError("no process has the guest's memory")


@pytest.mark.parametrize("cold", [False, True])
def test_what_a_guest_frees_is_the_hosts_again(cloche: Runner, cold: bool) -> None:
    """Most of it comes back within a minute; the twin, a machine that booted without the device, keeps all."""
    assert cloche("template", "build").returncode == 0
    words = [*(["--cold"] if cold else []), "python3", "-c", _PROGRAM]
    with cloche.popen("--no-tty", *words, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"taken\n"
        full = _memory_mib(process.pid)
        assert full >= _TAKEN_MIB
        process.stdin.write(b"\n")
        process.stdin.flush()
        left = full
        for _ in range(_LINES_OF_THE_TWIN if cold else _LINES):
            assert process.stdout.readline() == b"given back\n"
            left = _memory_mib(process.pid)
            if left < full - _TAKEN_MIB / 2:
                break
        process.terminate()
    assert (left >= full) if cold else (left < full - _TAKEN_MIB / 2)


#: Tells how often the only CPU's timer rings while nobody wants anything, some time after the start.
_IDLE = """
import time

def rings():
    with open("/proc/interrupts") as file:
        return next(int(line.split()[1]) for line in file if "LOC:" in line)

time.sleep(20)
before = rings()
time.sleep(10)
print(rings() - before)
"""
#: The command line, with a guest whose kernel is set as it comes.
_RESTLESS = """
import sys
sys.path.insert(0, sys.argv[1])
from cloche.cli.main import main
from cloche.plan import guest
guest.QUIET = ()
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.long
def test_an_idle_guest_is_left_alone(cloche: Runner) -> None:
    """Its kernel has next to nothing to do; the twin's, which is not told to be quiet, has something all the time."""
    words = ("run", "--cold", "python3", "-c", _IDLE)
    source = str(cloche.user.project / "src")
    twin = cloche.user.popen(
        ["/usr/bin/python3", "-c", _RESTLESS, source, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    quiet = int(cloche(*words).stdout)
    restless = int(twin.communicate(timeout=120)[0])
    assert quiet * 3 < restless
