"""How the kernel schedules processes (layer 3a): a run inherits it from its caller, whoever has made the machine."""

from __future__ import annotations

import os

from cloche.record import Record


class Scheduling(Record):
    """What the kernel keeps of a thread.

    Attributes:
        policy, priority: As in sched(7).
        nice: -20 to 19.
        cpus: The CPUs it may run on.
    """

    policy: int
    priority: int
    nice: int
    cpus: tuple[int, ...]


def current() -> Scheduling:
    """Return that of this process."""
    return Scheduling(
        os.sched_getscheduler(0),
        os.sched_getparam(0).sched_priority,
        os.getpriority(os.PRIO_PROCESS, 0),
        tuple(sorted(os.sched_getaffinity(0))),
    )


def apply(pids: tuple[int, ...], wanted: Scheduling) -> None:
    """Have every thread of these processes scheduled so; one that ends meanwhile is no error.

    Raises:
        PermissionError: The caller may not.
        OSError: The kernel does not know such a thing.
    """
    for pid in pids:
        try:
            threads = os.listdir(f"/proc/{pid}/task")
        except OSError:
            continue
        for thread in map(int, threads):
            try:
                os.sched_setscheduler(thread, wanted.policy, os.sched_param(wanted.priority))
                os.setpriority(os.PRIO_PROCESS, thread, wanted.nice)
                os.sched_setaffinity(thread, wanted.cpus)
            except ProcessLookupError:
                continue


def give_way() -> None:
    """Run this process, and what it starts, behind all others, as far as that can be taken back (``apply``).

    Who has become nice may become less so only with a right that ordinary users rarely have.
    """
    import resource

    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    wanted = 20 - os.getpriority(os.PRIO_PROCESS, 0)
    if os.geteuid() == 0 or 0 <= wanted <= resource.getrlimit(resource.RLIMIT_NICE)[0]:
        os.setpriority(os.PRIO_PROCESS, 0, 19)
