"""Starts a domain whose jails are not those of its policies; run as a program of its own, without the test's packages.

Arguments: the sources' directory, a directory to share, the weakenings: ``PROCESS:WHAT``; ``insecure:PART`` for what
the user gives up in so many words; ``bare:DIRECTORY`` for a file server from there that puts no filter on itself;
``arrangement:WHERE`` for where devices are; ``unchecked`` for a supervisor that does not count filters,
``unconfined`` for one that puts on none itself. Prints the domain's name when its guest is set up, and ends it at the
end of its input.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

sys.path.insert(0, sys.argv[1])

from cloche.domain.domain import Domain
from cloche.domain.launcher import Launcher
from cloche.domain.prepare import prepare_plan
from cloche.domain.timings import Timings
from cloche.host.facts import collect_facts
from cloche.host.reactor import READ, Reactor
from cloche.model.jail import AS_IS, Bind, BindFlag, JailFlag, Namespace
from cloche.model.request import Disk, RunRequest, Share

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.model.jail import Jail
    from cloche.model.plan import LaunchPlan, ProcessPlan

SYS_ADMIN = 1 << 21


def without_flag(jail: Jail, flag: int) -> Jail:
    """Return the jail without a flag."""
    return jail._replace(flags=jail.flags & ~flag)


def writable_stage(jail: Jail) -> Jail:
    """Return the jail with /usr mounted read-write."""
    root = tuple(
        op._replace(flags=op.flags & ~BindFlag.READ_ONLY)
        if isinstance(op, Bind) and op.path == b"/stage/usr"
        else op
        for op in jail.root
    )
    return jail._replace(root=root)


def without_sandbox(process: ProcessPlan) -> ProcessPlan:
    """Return QEMU without its own filter."""
    place = process.argv.index(b"-sandbox")
    return process._replace(argv=(*process.argv[:place], *process.argv[place + 2 :]))


JAILS: dict[str, Callable[[Jail], Jail]] = {
    "filter": lambda jail: jail._replace(seccomp=b""),
    # As many filters as before, and one of them allows everything.
    "swap": lambda jail: jail._replace(seccomp=b"\x06\0\0\0\0\0\xff\x7f"),
    "net": lambda jail: jail._replace(namespaces=jail.namespaces & ~Namespace.NET),
    "pid": lambda jail: jail._replace(namespaces=jail.namespaces & ~Namespace.PID),
    "capability": lambda jail: jail._replace(keep_caps=SYS_ADMIN),
    "no_new_privs": lambda jail: without_flag(jail, JailFlag.NO_NEW_PRIVS),
    "session": lambda jail: without_flag(jail, JailFlag.SETSID),
    "core": lambda jail: without_flag(jail, JailFlag.NOT_DUMPABLE)._replace(rlimits=()),
    "ids": lambda jail: jail._replace(uid=AS_IS, gid=AS_IS),
    "root": lambda jail: jail._replace(flags=jail.flags | JailFlag.ROOT_WRITABLE),
    "stage": writable_stage,
}


def weaken(process: ProcessPlan, words: list[str]) -> ProcessPlan:
    """Return a process as ``PROCESS:WEAKENING`` words say."""
    for word in words:
        name, _, what = word.partition(":")
        if name == "bare" and process.name == "fs-system":
            program = os.path.join(what, os.path.basename(process.executable))
            process = process._replace(executable=program, argv=(*process.argv, b"--bare"))
        if name == process.name:
            process = (
                without_sandbox(process)
                if what == "sandbox"
                else process._replace(jail=JAILS[what](process.jail))
            )
    return process


def made_plan(share: str, words: list[str]) -> LaunchPlan:
    """Return the plan for a machine with a share and a disk, with its processes' jails weakened."""
    insecure = tuple(word.partition(":")[2] for word in words if word.startswith("insecure:"))
    devices = [word.partition(":")[2] for word in words if word.startswith("arrangement:")]
    # A disk belongs to one domain at a time.
    image = os.path.join(share, f"disk-{os.getpid()}.img")
    with open(image, "wb") as file:
        file.truncate(16 << 20)
    shares, disks = (Share(share, share, True),), (Disk("home", image),)
    asked = RunRequest(argv=(b"true",), shares=shares, disks=disks, insecure=insecure)
    if devices:
        asked = asked._replace(devices=devices[0], hwrng=True)
    plan = prepare_plan(asked, collect_facts())
    return plan._replace(processes=tuple(weaken(process, words) for process in plan.processes))


def main() -> None:
    """Run one domain."""
    if "unchecked" in sys.argv:
        Launcher.verify = lambda self: None  # type: ignore[method-assign]
    with Reactor() as reactor:
        plan = made_plan(sys.argv[2], sys.argv[3:])
        launcher = Launcher(reactor, plan, Timings())
        domain = Domain(reactor, plan, launcher=lambda *_: launcher)
        if "unconfined" not in sys.argv:
            domain.on_ready = launcher.confine
        over = False

        def opened() -> None:
            sys.stdout.write(f"{domain.ident}\n")
            sys.stdout.flush()

        def ended(events: int) -> None:
            nonlocal over
            del events
            over = not os.read(0, 1)

        domain.on_open = opened
        reactor.register(0, READ, ended)
        try:
            domain.start()
            reactor.run_until(lambda: over)
        finally:
            domain.close()


if __name__ == "__main__":
    main()
