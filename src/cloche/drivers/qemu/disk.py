"""The process of a disk (layer 4, pure)."""

from __future__ import annotations

from cloche.drivers.qemu import command
from cloche.model.jail import AS_IS, Jail, JailFlag, Namespace
from cloche.model.plan import Descriptor, Endpoint, EndpointKind, OpenFile, ProcessPlan
from cloche.plan.disks import check_disks
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.model.facts import HostFacts
    from cloche.model.machine import Machine
    from cloche.model.request import Disk

_SOCKET_FD, _IMAGE_FD = 3, 4
_RLIMIT_CORE, _RLIMIT_NOFILE = 4, 7
_ALONE = Namespace.MOUNT | Namespace.NET | Namespace.IPC | Namespace.UTS | Namespace.CGROUP | Namespace.PID
#: One for each region of the guest's memory, for the queue's events and the log, and some to spare.
_MOST_FDS = 128


def plan_disks(
    disks: tuple[Disk, ...], machine: Machine, facts: HostFacts
) -> tuple[list[ProcessPlan], list[Endpoint]]:
    """Return the processes of a machine's disks, and their sockets.

    Raises:
        DiskError: The machine cannot have them.
    """
    check_disks(disks, command.max_disks(machine))
    names = [command.disk_endpoint(index) for index in range(len(disks))]
    processes = [plan_disk(disk, name, facts) for disk, name in zip(disks, names, strict=True)]
    return processes, [Endpoint(name, EndpointKind.LISTEN) for name in names]


def plan_disk(disk: Disk, endpoint: str, facts: HostFacts) -> ProcessPlan:
    """Return the process that keeps a disk: an empty root, a socket, and one open file without a name."""
    words = [b"cloche-disk", b"--fd", b"%d" % _SOCKET_FD, b"--image-fd", b"%d" % _IMAGE_FD]
    words += [b"--format", disk.format.encode(), b"--tag", disk.tag.encode()]
    if not disk.writable:
        words.append(b"--readonly")
    most = min(_MOST_FDS, facts.nofile_hard)
    return ProcessPlan(
        name=f"disk-{disk.tag}",
        argv=tuple(words),
        env=(),
        descriptors=(Descriptor(endpoint, "listen", _SOCKET_FD),),
        jail=Jail(
            namespaces=_ALONE,
            uid=AS_IS,
            gid=AS_IS,
            keep_caps=0,
            flags=JailFlag.NO_NEW_PRIVS | JailFlag.SETSID | JailFlag.NOT_DUMPABLE,
            hostname=b"",
            cwd=b"/",
            rlimits=((_RLIMIT_CORE, 0, 0), (_RLIMIT_NOFILE, most, most)),
            seccomp=b"",
            root=(),
        ),
        executable=facts.tools.disk,
        files=(OpenFile(disk.path, disk.writable, _IMAGE_FD),),
        restarts=True,
    )
