"""Looking whether every process has its filters of system calls, before anything of the user's runs (layer 5).

The filters that the warden puts on cannot be absent without its saying so; those that a program puts on itself can. So
when the agent answers, and before it is told anything, the kernel is asked how many each process has. By then QEMU has
long put on its own, and a device does so before it hears the first word. Which filters they are is not asked.
"""

from __future__ import annotations

import os
from select import select
from time import monotonic

from cloche.errors import LaunchError
from cloche.model.audit import hold_of_program
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.model.plan import LaunchPlan, ProcessPlan

_FIELD = b"\nSeccomp_filters:\t"
#: passt says nothing when it is ready, and no VMM waits for it: so long it may take after the agent's answer.
_LATE, _PATIENCE_S, _LOOK_AGAIN_S = "passt", 5.0, 0.005


def check_filters(plan: LaunchPlan, pidfds: dict[int, int], warden: int) -> None:
    """Look at every process of a plan; ``pidfds`` has a descriptor for each that was started.

    ``warden`` is the warden's process id: it has the filters that all had from the start.

    Raises:
        LaunchError: One has fewer filters than its policy asks for, or was not started.
    """
    own = _count(str(warden))
    deadline = monotonic() + _PATIENCE_S
    for ident, process in enumerate(plan.processes):
        pid = _pid(pidfds[ident]) if ident in pidfds else -1
        if pid < 0:
            continue  # it is not there (any more): its end is reported, and is judged by whoever hears of it
        hold = hold_of_program(_program(process), process.argv, as_root=False)
        needed = hold.filters if hold is not None else 0
        found = _fewest(pid) - own
        while found < needed and process.name == _LATE and monotonic() < deadline:
            # It has ended when this can be read; the kernel does not tell when a filter is put on.
            select([pidfds[ident]], [], [], _LOOK_AGAIN_S)
            found = _fewest(pid) - own
        if found < needed:
            raise LaunchError(
                f"cannot start {process.name}: it has {found} of the {needed} filters of system calls"
                " that its policy needs",
                hint="`make setup` builds the programs anew, and another QEMU may know `-sandbox`;"
                " --insecure-no-jail=seccomp starts it unfiltered.",
            )


def _fewest(pid: int) -> int:
    """Return the number of filters of the thread that has the fewest."""
    return min(_count(f"{pid}/task/{task}") for task in os.listdir(f"/proc/{pid}/task"))


def _program(process: ProcessPlan) -> str:
    return os.path.basename(process.executable or os.fsdecode(process.argv[0]))


def _pid(pidfd: int) -> int:
    """Return the number of a process here, -1 when it has ended. It is not given to another one before it is reaped."""
    with open(f"/proc/self/fdinfo/{pidfd}", "rb", buffering=0) as file:
        text = file.read(1024) or b""
    return int(text.partition(b"\nPid:")[2].split(b"\n", 1)[0])


def _count(process: str) -> int:
    with open(f"/proc/{process}/status", "rb", buffering=0) as file:
        text = file.read(8192) or b""
    return int(text.partition(_FIELD)[2].split(b"\n", 1)[0])
