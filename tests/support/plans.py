"""Facts and requests to plan with, for tests that need no host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cloche.drivers.registry import find_driver
from cloche.model.facts import HostFacts, PathFact, SkeletonEntry, Tools, User
from cloche.model.jail import IdRange
from cloche.model.machine import Kernel
from cloche.model.request import Include, RunRequest, Share
from cloche.plan.stage import stage_candidates

if TYPE_CHECKING:
    from cloche.model.plan import LaunchPlan, ProcessPlan

ALICE = User("alice", 1000, 1000, "alice", "/home/alice", "/bin/bash", "Alice")
ROOT = User("root", 0, 0, "root", "/root", "/bin/bash", "root")
KERNEL = Kernel("6.12-test", "/kernels/vmlinux", "/kernels/initrd", "built", "microvm")
TOOLS = Tools(
    "/usr/bin/qemu-system-x86_64",
    (10, 0),
    "/usr/bin/bwrap",
    "/bin/warden",
    "/bin/agent",
    "/bin/fs",
    "/bin/disk",
    "/bin/net",
    "/bin/rng",
    "/bin/vsock",
    "/bin/bundle",
    "/usr/bin/passt",
)
#: Any program will do: it is passed on and not looked at.
FILTERS = {
    "cloche-fs": b"filter..",
    "cloche-disk": b"disks...",
    "cloche-net": b"network.",
    "cloche-rng": b"numbers.",
    "cloche-vsock": b"streams.",
    "cloche-bundle": b"all.....",
    "passt": b"outside.",
    "qemu": b"another.",
    "qemu-reconnect": b"sockets.",
    "qemu-devices": b"laden...",
}

#: Ids that root's processes may have.
IDS = IdRange(50000, 100)

_LINKS = {
    "/bin": "usr/bin",
    "/sbin": "usr/sbin",
    "/lib": "usr/lib",
    "/lib64": "usr/lib64",
    "/etc/localtime": "/usr/share/zoneinfo/Europe/Vienna",
    "/etc/os-release": "../usr/lib/os-release",
}


def paths(*absent: str) -> dict[str, PathFact]:
    """Return facts of a host that has everything a stage may show, but for ``absent``."""
    return {
        path: PathFact("link", _LINKS[path]) if path in _LINKS else PathFact("dir")
        for path in stage_candidates()
        if path not in absent
    }


def facts(
    user: User = ALICE,
    *,
    cwd: str = "/home/alice",
    environment: dict[bytes, bytes] | None = None,
    kvm: bool | None = False,
    memory_mib: int = 8192,
    tools: Tools = TOOLS,
    filters: dict[str, bytes] | None = None,
    skeleton: tuple[SkeletonEntry, ...] | None = (),
) -> HostFacts:
    """Return the facts of an ordinary host."""
    return HostFacts(
        user=user,
        cwd=cwd,
        umask=0o022,
        environment={b"PATH": b"/usr/bin:/bin"} if environment is None else environment,
        paths=paths(),
        tools=tools,
        cpus=2,
        memory_mib=memory_mib,
        kvm=kvm,
        nofile_hard=4096,
        filters=FILTERS if filters is None else filters,
        ids=IDS if user.uid == 0 else None,
        skeleton=skeleton,
    )


def request(
    *argv: bytes, shares: tuple[Share, ...] = (), includes: tuple[Include, ...] = (), **options: Any
) -> RunRequest:
    """Return a request; without words the program is ``true``."""
    return RunRequest(argv or (b"true",), shares=shares, includes=includes)._replace(**options)


def share(source: str, target: str = "", *, writable: bool = False) -> Share:
    """Return a share, at the same place unless told otherwise."""
    return Share(source, target or source, writable)


def plan(asked: RunRequest, host: HostFacts | None = None, driver: str = "qemu") -> LaunchPlan:
    """Return the plan a driver makes on an ordinary host."""
    return find_driver(driver).plan(asked, host or facts(), KERNEL if driver == "qemu" else None)


def process(made: LaunchPlan, name: str) -> ProcessPlan:
    """Return the process of that name."""
    return next(process for process in made.processes if process.name == name)


def values(argv: tuple[bytes, ...], option: str) -> list[str]:
    """Return every value an option of QEMU was given."""
    words = [word.decode() for word in argv]
    return [words[index + 1] for index, word in enumerate(words) if word == option]
