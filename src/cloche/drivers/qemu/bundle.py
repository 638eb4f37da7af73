"""All devices of a machine in one process outside of the VMM (layer 4, pure): ``--devices=bundled``.

The devices are the same as in processes of their own, a thread each. Their one jail holds what any of them needs.
"""

from __future__ import annotations

from cloche.drivers.qemu.board import DeviceParts
from cloche.drivers.qemu.disk import disk_device, disk_files, disk_options, limit_files
from cloche.drivers.qemu.files import STAGE, server_options, stage_root, tree_device
from cloche.drivers.qemu.jails import device_jail
from cloche.drivers.qemu.rng import rng_device
from cloche.model.jail import AS_IS, Dir, Proc
from cloche.model.plan import Descriptor, Endpoint, EndpointKind, OpenFile, ProcessPlan
from cloche.plan.disks import check_disks
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.drivers.qemu.board import Board
    from cloche.drivers.qemu.files import Tree
    from cloche.model.facts import HostFacts
    from cloche.model.jail import RootOp
    from cloche.model.request import RunRequest

NAME = "devices"
#: The first descriptor of the process, and the first of QEMU's for it.
_FIRST_FD, _FIRST_VMM_FD = 3, 20


def plan_bundle(
    board: Board, trees: tuple[Tree, ...], request: RunRequest, facts: HostFacts
) -> tuple[DeviceParts, ...]:
    """Return the parts of all devices.

    Raises:
        DiskError: The machine cannot have these disks.
    """
    bundle = _Bundle()
    for tree in trees:
        place = STAGE + b"/" + tree.name.encode()
        # An open file of one server's is one less for the others.
        files = b"%d" % (facts.nofile_hard // len(trees))
        fd = bundle.add(tree.name, b"fs", (*server_options(tree, place), b"--fd-limit", files))
        bundle.argv += tree_device(board, tree, fd)
        bundle.root += stage_root(tree, place)
    check_disks(request.disks, board.left)
    for index, disk in enumerate(request.disks):
        name = f"disk{index}"
        numbers = (bundle.next_fd(), bundle.next_fd())
        bundle.files += disk_files(disk, *numbers)
        bundle.connect(name, bundle.add(name, b"disk", disk_options(disk, *numbers)))
        bundle.argv += disk_device(board, name)
    if request.hwrng:
        bundle.connect("rng", bundle.add("rng", b"rng", ()))
        bundle.argv += rng_device(board, "rng")
    caps = 0
    for tree in trees:
        caps |= tree.caps
    jail = device_jail(facts, "cloche-bundle", tuple(bundle.root), keep_caps=caps)
    if any(tree.as_owner for tree in trees):
        jail = jail._replace(uid=AS_IS, gid=AS_IS)
    if request.disks and not any(share.writable for share in request.shares):
        jail = limit_files(jail, request.disks)
    process = ProcessPlan(
        name=NAME,
        argv=tuple(bundle.words),
        env=(),
        descriptors=tuple(bundle.sockets),
        jail=jail,
        executable=facts.tools.bundle,
        files=tuple(bundle.files),
    )
    return (
        DeviceParts(
            argv=tuple(bundle.argv),
            endpoints=tuple(Endpoint(socket.endpoint, EndpointKind.LINK) for socket in bundle.sockets),
            processes=(process,),
            descriptors=tuple(bundle.connections),
        ),
    )


class _Bundle:
    """What the process and QEMU get for each device that is added."""

    def __init__(self) -> None:
        self.words: list[bytes] = [b"cloche-bundle"]
        self.argv: list[str] = []
        # The file servers open files again by /proc/self/fd.
        self.root: list[RootOp] = [Proc(b"/proc"), Dir(STAGE, 0o755)]
        self.sockets: list[Descriptor] = []
        self.connections: list[Descriptor] = []
        self.files: list[OpenFile] = []
        self._fd = _FIRST_FD

    def next_fd(self) -> int:
        """Return a number of a descriptor that the process has not been given."""
        self._fd += 1
        return self._fd - 1

    def add(self, name: str, kind: bytes, options: tuple[bytes, ...]) -> int:
        """Add a device to the process; returns the number of QEMU's connection to it."""
        fd = self.next_fd()
        self.words += [b"--device", kind, b"--fd", b"%d" % fd, *options]
        self.sockets.append(Descriptor(name, "listen", fd))
        connection = _FIRST_VMM_FD + len(self.connections)
        self.connections.append(Descriptor(name, "connect", connection))
        return connection

    def connect(self, name: str, fd: int) -> None:
        """Have QEMU speak on a connection that it is given."""
        self.argv += ["-chardev", f"socket,id={name},fd={fd}"]
