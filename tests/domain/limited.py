"""Starts domains whose processes want more than they may have; runs as root of a guest whose kernel has cgroups.

A program of its own, without the tests' packages. Argument: the sources' directory. Prints a JSON object for root and
one for an ordinary user, each with what every trial showed.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

sys.path.insert(0, sys.argv[1])

from cloche.cli import doctor
from cloche.domain.audit import audit_domain
from cloche.domain.launcher import Launcher
from cloche.domain.timings import Timings
from cloche.host import cgroups, rundir
from cloche.host.facts import collect_facts
from cloche.host.reactor import Reactor
from cloche.model.guest import GuestCommand
from cloche.model.jail import Jail, JailFlag, Limits, Namespace
from cloche.model.plan import Descriptor, Endpoint, EndpointKind, LaunchPlan, ProcessPlan, SharingPlan

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.errors import ClocheError

MIB = 1 << 20
PATIENCE_S = 60.0
UID = 1000
MOST, WANTED = 48 * MIB, 96 * MIB
MOST_THREADS, WANTED_THREADS = 4, 12
#: Takes memory and uses it, piece by piece.
HOG = f"""
pieces = [b"x" * {MIB} for _ in range({WANTED // MIB})]
print("had", len(pieces), flush=True)
"""
#: Forks as often as it can, and says how many there are then.
BOMB = f"""
import os, time
many = 1
try:
    for _ in range({WANTED_THREADS}):
        if os.fork() == 0:
            time.sleep(1000)
        many += 1
except BlockingIOError:
    pass
print("forked", many, flush=True)
time.sleep(1000)
"""
IDLE = "import time; print('up', flush=True); time.sleep(1000)"


def plan(parent: str, program: str, limits: Limits) -> LaunchPlan:
    """Return the plan of a domain with one process that runs a program of Python's, and talks on its console."""
    process = ProcessPlan(
        "device",
        (b"/usr/bin/python3", b"-IS", b"-c", program.encode()),
        (),
        (Descriptor("console", "there", 1),),
        Jail(
            Namespace.PID | Namespace.CGROUP | Namespace.NET,
            flags=JailFlag.NO_NEW_PRIVS | JailFlag.SETSID | JailFlag.KEEP_ROOT,
        ),
        limits=limits if parent else None,
    )
    return LaunchPlan(
        driver="qemu",
        isolation="",
        machine=None,
        endpoints=(Endpoint("console", EndpointKind.PAIR),),
        processes=(process,),
        control="",
        console="console",
        monitor="",
        setup=(),
        command=GuestCommand((), (), b"/", 0, 0),
        writable_shares=False,
        boot_timeout_s=1,
        timeout_s=None,
        sharing=SharingPlan((), (), collect_facts().user),
        cgroup=parent,
    )


def trial(
    parent: str, program: str, limits: Limits, until: str = "", then: Callable[[], object] | None = None
) -> dict[str, object]:
    """Run a domain until its process says a word or it ends, and do something then; returns what was seen."""
    ends: list[ClocheError] = []
    with Reactor() as reactor:
        launcher = Launcher(reactor, plan(parent, program, limits), Timings())
        launcher.ended = ends.append
        begin = perf_counter()
        launcher.start()
        started_ms = 1000 * (perf_counter() - begin)
        said: list[str] = []

        def over() -> bool:
            said[:] = launcher.console_tail()
            return bool(ends) or bool(until and said and said[-1].startswith(until))

        reactor.run_until(over, timeout=PATIENCE_S)
        seen = then() if then else None
        launcher.close()
    left = [str(path) for path in Path(parent or cgroups.ROOT).glob("cloche-*")]
    return {
        "said": said,
        "end": ends[0].message if ends else "",
        "seen": seen,
        "left": [*left, *(running.ident for running in rundir.find_running())],
        "started_ms": started_ms,
    }


def look() -> list[list[str]]:
    """Return what the audit says of limits: as they are, with one taken away, and with the process moved out."""
    (running,) = rundir.find_running()

    def said() -> list[str]:
        words = ("has no limit of its", "in another cgroup")
        return [line for line in audit_domain(running).failures if any(word in line for word in words)]

    seen = [said()]
    own = Path(running.cgroup) / "device"
    (own / "memory.max").write_text("max")
    seen.append(said())
    outside = own.parent.parent / "elsewhere"
    outside.mkdir()
    (outside / "cgroup.procs").write_text((own / "cgroup.procs").read_text().split()[0])
    seen.append(said())
    return seen


def killed(parent: str, *, warden: bool) -> dict[str, object]:
    """Kill the supervisor of a domain (and the warden's outer process); say what is left then, and after a sweep."""
    reader, writer = os.pipe()

    def wait() -> None:
        os.write(writer, b"x")
        signal.pause()

    supervisor = os.fork()
    if supervisor == 0:
        trial(parent, IDLE, Limits(MOST, MOST_THREADS), "up", wait)
        os._exit(0)
    os.close(writer)
    os.read(reader, 1)
    (running,) = rundir.find_running()
    device = int((Path(running.cgroup) / "device/cgroup.procs").read_text().split()[0])
    pidfds = [os.pidfd_open(pid) for pid in (running.warden, device)]
    if warden:
        # Together, so that neither can do anything about the other's end.
        os.kill(supervisor, signal.SIGSTOP)
        os.kill(running.warden, signal.SIGKILL)
    os.kill(supervisor, signal.SIGKILL)
    os.waitpid(supervisor, 0)
    for pidfd in pidfds:
        select.select([pidfd], [], [], PATIENCE_S)
        os.close(pidfd)
    os.close(reader)
    left = Path(running.cgroup).exists()
    rundir.sweep()
    return {"left": left, "after sweep": Path(running.cgroup).exists()}


def everything() -> dict[str, object]:
    """Try everything as whoever this process is."""
    parent = cgroups.find_parent()
    limits = Limits(MOST, MOST_THREADS)
    none = Limits(8 * WANTED, 8 * WANTED_THREADS)
    return {
        "parent": parent,
        "doctor": doctor._cgroups()._asdict(),
        "memory": trial(parent, HOG, limits),
        "memory, more allowed": trial(parent, HOG, none),
        "memory, no cgroup": trial("", HOG, limits),
        "threads": trial(parent, BOMB, limits, "forked"),
        "threads, no cgroup": trial("", BOMB, limits, "forked"),
        "audit": trial(parent, IDLE, limits, "up", look),
        "killed": killed(parent, warden=False),
        "killed with its warden": killed(parent, warden=True),
    }


def report(seen: dict[str, object]) -> None:
    """Tell the test."""
    sys.stdout.write(json.dumps(seen) + "\n")
    sys.stdout.flush()


def as_user() -> None:
    """Try everything as somebody whom root has given a cgroup, by the very command that `cloche doctor` names."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setresgid(UID, UID, UID)
        os.setresuid(UID, UID, UID)
        os.environ["XDG_RUNTIME_DIR"] = f"/tmp/{UID}"
        before = doctor._cgroups()._asdict()
        os.write(writer, json.dumps(before).encode())
        signal.pause()
    os.close(writer)
    refused = json.loads(os.read(reader, 65536))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    # In a guest everybody may be root already: without sudo. This process is the shell whose child cloche is.
    subprocess.run(["sh", "-c", refused["remedy"].removeprefix("sudo ")], check=True)
    os.setgroups([])
    os.setresgid(UID, UID, UID)
    os.setresuid(UID, UID, UID)
    os.environ["XDG_RUNTIME_DIR"] = f"/tmp/{UID}"
    report({"refused": refused, **everything()})


def main() -> None:
    """Mount the cgroups and try, as root and as an ordinary user."""
    for uid in (0, UID):
        Path(f"/tmp/{uid}").mkdir(mode=0o700)
        os.chown(f"/tmp/{uid}", uid, uid)
    os.environ["XDG_RUNTIME_DIR"] = "/tmp/0"
    absent = doctor._cgroups()._asdict()
    subprocess.run(["sh", "-c", absent["remedy"]], check=True)
    report({"refused": absent, **everything()})
    as_user()


if __name__ == "__main__":
    main()
