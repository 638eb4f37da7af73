"""The disks of a machine (layer 4, pure), each in a process of its own."""

from __future__ import annotations

import os

from cloche.drivers.qemu.board import RECONNECT_DIRECTORY, DeviceParts
from cloche.drivers.qemu.jails import device_jail
from cloche.model.jail import Bind, BindFlag
from cloche.model.plan import (
    RUN_DIRECTORY,
    Descriptor,
    Endpoint,
    EndpointKind,
    OpenFile,
    ProcessPlan,
    socket_name,
)
from cloche.plan.disks import check_disks
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.drivers.qemu.board import Board
    from cloche.model.facts import HostFacts
    from cloche.model.jail import Jail
    from cloche.model.request import Disk

_SOCKET_FD, _IMAGE_FD = 3, 4
_RLIMIT_FSIZE = 1
#: The notes on requests in flight are a file too: of a queue of 1024 they take 16448 bytes (inflight.rs).
_NOTES_BYTES = 32 << 10

#: What virtio-mmio offers a guest whatever the device is set to; the notes on requests in flight must have as many.
_QUEUE = 1024

#: How long QEMU waits before it connects to a process again, in milliseconds (whole seconds where it knows no others).
_RECONNECT_MS = 50
_RECONNECT_MS_SINCE = (9, 2)


def plan_disks(board: Board, disks: tuple[Disk, ...], facts: HostFacts) -> tuple[DeviceParts, ...]:
    """Return the parts of a machine's disks, in the order in which the guest is to find them.

    Raises:
        DiskError: The machine cannot have them.
    """
    check_disks(disks, board.left)
    return tuple(_plan_disk(board, disk, f"disk{index}", facts) for index, disk in enumerate(disks))


def _plan_disk(board: Board, disk: Disk, name: str, facts: HostFacts) -> DeviceParts:
    # By path and not by descriptor: only so can QEMU connect again when the disk's process has died.
    path = f"{RECONNECT_DIRECTORY}/{name}"
    place = board.place("vhost-user-blk", suffix="")
    return DeviceParts(
        argv=(
            *("-chardev", f"socket,id={name},path={path},{reconnect(facts)}"),
            *("-device", f"{place},chardev={name},num-queues=1,queue-size={_QUEUE},config-wce=off"),
        ),
        endpoints=(Endpoint(name, EndpointKind.LISTEN),),
        processes=(_plan_process(disk, name, facts),),
        root=(reconnect_bind(name),),
        reconnects=True,
    )


def reconnect(facts: HostFacts) -> str:
    """Return QEMU's words for connecting again soon to a process that has died."""
    if facts.tools.qemu_version >= _RECONNECT_MS_SINCE:
        return f"reconnect-ms={_RECONNECT_MS}"
    return "reconnect=1"


def reconnect_bind(endpoint: str) -> Bind:
    """Return what QEMU's jail shows of a LISTEN endpoint, so that QEMU can connect to it again."""
    source = RUN_DIRECTORY + b"/" + os.fsencode(socket_name(endpoint))
    return Bind(source, f"{RECONNECT_DIRECTORY}/{endpoint}".encode(), BindFlag.NOSUID | BindFlag.NODEV)


def _plan_process(disk: Disk, endpoint: str, facts: HostFacts) -> ProcessPlan:
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
        jail=_limit(device_jail(facts, "cloche-disk"), disk.most_bytes),
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
