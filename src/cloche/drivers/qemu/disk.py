"""The disks of a machine (layer 4, pure), each in a process of its own; and what other arrangements share with that."""

from __future__ import annotations

from cloche.drivers.qemu.board import DeviceParts, reconnect_bind, reconnecting_socket
from cloche.drivers.qemu.jails import device_jail
from cloche.model.plan import (
    Descriptor,
    Endpoint,
    EndpointKind,
    OpenFile,
    ProcessPlan,
)
from cloche.model.profile import TAG
from cloche.model.request import Disk
from cloche.plan.disks import check_disks
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.drivers.qemu.board import Board
    from cloche.model.facts import HostFacts
    from cloche.model.jail import Jail
    from cloche.model.request import RunRequest

#: Stands in a plan for a file in which nothing is, which is made when the plan is carried out.
EMPTY_PLACEHOLDER = "/empty"
_SOCKET_FD, _IMAGE_FD, _UNDO_FD = 3, 4, 5
_RLIMIT_FSIZE = 1
#: The notes on requests in flight are a file too: of a queue of 1024 they take 16448 bytes (inflight.rs).
_NOTES_BYTES = 32 << 10

#: What virtio-mmio offers a guest whatever the device is set to; the notes on requests in flight must have as many.
_QUEUE = 1024


def plan_disks(
    board: Board, disks: tuple[Disk, ...], facts: HostFacts, before: int = 0
) -> tuple[DeviceParts, ...]:
    """Return the parts of a machine's disks, in the order in which the guest is to find them.

    Args:
        board: Which places are left.
        disks: All of them.
        facts: Of the host.
        before: So many of them have their places already.

    Raises:
        DiskError: The machine cannot have them.
    """
    check_disks(disks, board.left + before)
    return tuple(
        _plan_disk(board, disk, f"disk{index}", facts) for index, disk in enumerate(disks) if index >= before
    )


def count_drives(request: RunRequest) -> int:
    """Return how many of a request's disks can be put into drives that a template has, the first ones.

    The disk of a profile alone, or else those without partitions: the guest's kernel looks for none in a drive.
    """
    if request.layer is not None:
        return 1
    whole = [disk.is_whole for disk in request.disks]
    return whole.index(False) if False in whole else len(whole)


def plan_drives(board: Board, request: RunRequest, facts: HostFacts) -> tuple[DeviceParts, ...]:
    """Return the parts of as many drives, in which nothing is yet."""
    return tuple(
        _plan_disk(board, Disk(f"drive{index}", EMPTY_PLACEHOLDER), f"disk{index}", facts)
        for index in range(count_drives(request))
    )


def disk_device(board: Board, chardev: str) -> tuple[str, str]:
    """Return QEMU's words for a disk behind a socket."""
    place = board.place("vhost-user-blk", suffix="")
    return "-device", f"{place},chardev={chardev},num-queues=1,queue-size={_QUEUE},config-wce=off"


def disk_options(disk: Disk, image_fd: int, undo_fd: int) -> tuple[bytes, ...]:
    """Return the options that say what a disk of ours is, and as what its image is open, and its undo log if any."""
    words = [b"--image-fd", b"%d" % image_fd, b"--format", disk.format.encode(), b"--tag", disk.tag.encode()]
    if not disk.writable:
        words.append(b"--readonly")
    if disk.undo:
        words += [b"--undo-fd", b"%d" % undo_fd, b"--undo-bytes", b"%d" % disk.undo_bytes]
    return tuple(words)


def disk_file(disk: Disk, number: int) -> OpenFile:
    """Return the open file that a disk is kept in."""
    size = disk.most_bytes or 0 if disk.empty else 0
    return OpenFile(disk.path, disk.writable, number, disk.copied, size)


def disk_files(disk: Disk, image_fd: int, undo_fd: int) -> tuple[OpenFile, ...]:
    """Return what a disk's process has open: what it is kept in, and its undo log if it has one."""
    image = disk_file(disk, image_fd)
    return (image, OpenFile(disk.undo, True, undo_fd)) if disk.undo else (image,)


def _plan_disk(board: Board, disk: Disk, name: str, facts: HostFacts) -> DeviceParts:
    return DeviceParts(
        argv=(
            *("-chardev", reconnecting_socket(name, facts)),
            *disk_device(board, name),
        ),
        endpoints=(Endpoint(name, EndpointKind.LISTEN),),
        processes=(_plan_process(disk, name, facts),),
        root=(reconnect_bind(name),),
        reconnects=True,
    )


def _plan_process(disk: Disk, endpoint: str, facts: HostFacts) -> ProcessPlan:
    # It holds a socket and one or two open files, and knows no name of any.
    jail = device_jail(facts, "cloche-disk")
    # The guest of a profile is told when its disk has been made larger.
    grows = (b"--grows",) if disk.tag == TAG and disk.writable else ()
    return ProcessPlan(
        name=f"disk-{disk.tag}",
        argv=(b"cloche-disk", b"--fd", b"%d" % _SOCKET_FD, *disk_options(disk, _IMAGE_FD, _UNDO_FD), *grows),
        env=(),
        descriptors=(Descriptor(endpoint, "listen", _SOCKET_FD),),
        jail=limit_files(jail, (disk,)),
        executable=facts.tools.disk,
        files=disk_files(disk, _IMAGE_FD, _UNDO_FD),
        restarts=True,
    )


def limit_files(jail: Jail, disks: tuple[Disk, ...], least: int = _NOTES_BYTES) -> Jail:
    """Keep a process from making files larger than its disks have to be, and so from filling the host's file system.

    Args:
        jail: Of a process that writes to no other file of the host.
        disks: Its disks.
        least: How large a file it must be able to make in any case, in bytes.
    """
    sizes = [disk.most_bytes for disk in disks]
    if None in sizes:
        return jail
    most = max(least, *(size for size in sizes if size is not None), *(disk.undo_bytes for disk in disks))
    others = (limit for limit in jail.rlimits if limit[0] != _RLIMIT_FSIZE)
    return jail._replace(rlimits=(*others, (_RLIMIT_FSIZE, most, most)))


def grown(process: ProcessPlan, disk: Disk) -> ProcessPlan:
    """Return the process of a disk whose file has been made larger, to be started in the place of the present one."""
    return process._replace(jail=limit_files(process.jail, (disk,)))
