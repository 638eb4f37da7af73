"""The devices of a machine inside the VMM (layer 4, pure): ``--devices=vmm``.

These are QEMU's own: trees over 9p, disks, random numbers. QEMU's jail holds what all of them need.
"""

from __future__ import annotations

from cloche.drivers.qemu.board import DeviceParts
from cloche.drivers.qemu.disk import disk_file
from cloche.drivers.qemu.files import STAGE, stage_root
from cloche.errors import UsageError
from cloche.model.jail import Dir, Proc
from cloche.plan.disks import check_disks
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.drivers.qemu.board import Board
    from cloche.drivers.qemu.files import Tree
    from cloche.model.facts import HostFacts
    from cloche.model.request import Disk, RunRequest

#: The first descriptor of the images.
_FIRST_FD = 20
#: Requests that a queue holds, as in the disk of ours.
_QUEUE = 1024


def plan_inside(
    board: Board, trees: tuple[Tree, ...], request: RunRequest, facts: HostFacts
) -> tuple[DeviceParts, ...]:
    """Return the parts of all devices.

    Raises:
        UsageError: The guest's kernel has no 9p.
        DiskError: The machine cannot have these disks.
    """
    if not board.microvm:
        raise UsageError(
            "--devices=vmm needs a guest kernel with 9p, and this one comes without",
            hint="`cloche kernel build` makes one that has it.",
        )
    devices = [_plan_tree(board, tree, facts) for tree in trees]
    check_disks(request.disks, board.left)
    devices += [_plan_disk(board, disk, index) for index, disk in enumerate(request.disks)]
    if request.hwrng:
        device = f"{board.place('virtio-rng')},rng=rng"
        devices.append(DeviceParts(argv=("-object", "rng-builtin,id=rng", "-device", device), inside=True))
    return tuple(devices)


def _plan_tree(board: Board, tree: Tree, facts: HostFacts) -> DeviceParts:
    place = STAGE + b"/" + tree.name.encode()
    # What root gives away in the guest is given away on the host; others cannot, and are told nothing of it.
    model = "passthrough" if facts.user.uid == 0 else "none"
    options = f"local,id={tree.name},path={place.decode()},security_model={model},multidevs=remap"
    if tree.readonly:
        options += ",readonly=on"
    notices: tuple[str, ...] = ()
    if tree.name == "system" and facts.user.uid != 0:
        notices = ("in the guest, files of the host's root belong to nobody (--devices=vmm)",)
    return DeviceParts(
        argv=(
            *("-fsdev", options),
            *("-device", f"{board.place('virtio-9p')},fsdev={tree.name},mount_tag={tree.name}"),
        ),
        # It sets modes and attributes by /proc/self/fd.
        root=(
            Dir(STAGE, 0o755),
            *stage_root(tree, place),
            *((Proc(b"/proc"),) if tree.name == "system" else ()),
        ),
        inside=True,
        caps=tree.caps,
        as_owner=tree.as_owner,
        notices=notices,
    )


def _plan_disk(board: Board, disk: Disk, index: int) -> DeviceParts:
    name, fd = f"disk{index}", _FIRST_FD + index
    readonly = "off" if disk.writable else "on"
    # The image is open and locked. Zeros and holes as in the disk of ours.
    file = f"driver=file,filename=/dev/fdset/{index},locking=off"
    options = f"discard=unmap,detect-zeroes=off,read-only={readonly},auto-read-only=off"
    if disk.format == "raw":
        words = ["-blockdev", f"{file},node-name={name},{options}"]
    else:
        words = ["-blockdev", f"{file},node-name={name}-file,{options}"]
        words += ["-blockdev", f"driver=qcow2,file={name}-file,backing=,node-name={name},{options}"]
    device = f"{board.place('virtio-blk')},drive={name},serial={disk.tag},num-queues=1,queue-size={_QUEUE}"
    return DeviceParts(
        argv=("-add-fd", f"fd={fd},set={index}", *words, "-device", device),
        inside=True,
        files=(disk_file(disk, fd),),
    )
