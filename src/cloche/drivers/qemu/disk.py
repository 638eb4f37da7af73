"""The process of a disk (layer 4, pure)."""

from __future__ import annotations

from cloche.drivers.qemu import command
from cloche.model.plan import Descriptor, Endpoint, EndpointKind, OpenFile, ProcessPlan
from cloche.plan.disks import check_disks
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.model.facts import HostFacts
    from cloche.model.jail import Jail
    from cloche.model.machine import Machine
    from cloche.model.request import Disk

_SOCKET_FD, _IMAGE_FD = 3, 4
_RLIMIT_FSIZE = 1
#: The notes on requests in flight are a file too: of a queue of 1024 they take 16448 bytes (inflight.rs).
_NOTES_BYTES = 32 << 10


def plan_disks(
    disks: tuple[Disk, ...], machine: Machine, facts: HostFacts, jail: Jail
) -> tuple[list[ProcessPlan], list[Endpoint]]:
    """Return the processes of a machine's disks, each alone in a ``jail``, and their sockets.

    Raises:
        DiskError: The machine cannot have them.
    """
    check_disks(disks, command.max_disks(machine))
    names = [command.disk_endpoint(index) for index in range(len(disks))]
    processes = [_plan_disk(disk, name, facts, jail) for disk, name in zip(disks, names, strict=True)]
    return processes, [Endpoint(name, EndpointKind.LISTEN) for name in names]


def _plan_disk(disk: Disk, endpoint: str, facts: HostFacts, jail: Jail) -> ProcessPlan:
    # It holds a socket and one open file, and knows no name of either.
    words = [b"cloche-disk", b"--fd", b"%d" % _SOCKET_FD, b"--image-fd", b"%d" % _IMAGE_FD]
    words += [b"--format", disk.format.encode(), b"--tag", disk.tag.encode()]
    if not disk.writable:
        words.append(b"--readonly")
    return ProcessPlan(
        name=f"disk-{disk.tag}",
        argv=tuple(words),
        env=(),
        descriptors=(Descriptor(endpoint, "listen", _SOCKET_FD),),
        jail=_limit(jail, disk.most_bytes),
        executable=facts.tools.disk,
        files=(OpenFile(disk.path, disk.writable, _IMAGE_FD),),
        restarts=True,
    )


def _limit(jail: Jail, most_bytes: int | None) -> Jail:
    """Keep a process from making its file larger than it has to be, and so from filling the host's file system."""
    if most_bytes is None:
        return jail
    most = max(most_bytes, _NOTES_BYTES)
    return jail._replace(rlimits=(*jail.rlimits, (_RLIMIT_FSIZE, most, most)))
