"""A writable layer on a profile's disk (layer 2, pure): how the guest puts it in the place of the one in memory.

It is laid after the steps that all machines have in common, so a machine that goes on from a template gets it, too: the
system tree is mounted a second time (to the guest's kernel it is the same file system, with all it knows of it), a new
overlay is made of that and the disk, and becomes the root.
"""

from __future__ import annotations

from cloche.errors import UsageError
from cloche.model.guest import (
    MS_BIND,
    MS_NOATIME,
    MS_NODEV,
    MS_NOSUID,
    MS_RDONLY,
    MS_REMOUNT,
    MS_SILENT,
    CopyOnce,
    GuestCommand,
    Mkdir,
    Mount,
    Settle,
    SwitchRoot,
)
from cloche.model.machine import Devices
from cloche.model.plan import LayerPlan
from cloche.model.profile import TAG, UPPER
from cloche.model.request import Disk
from cloche.plan.guest import OVERLAY_OPTIONS, SYSTEM_TAG, encode, mount_tree
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.model.facts import User
    from cloche.model.guest import Step
    from cloche.model.request import Layer, RunRequest

#: Its disk is the first of the machine's.
DEVICE = b"/dev/vda"
_BASE = b"/cloche"
_DISK, _SYSTEM, _ROOT = _BASE + b"/disk", _BASE + b"/system", _BASE + b"/root"
#: Where the disk is seen once more at the end.
_LAST = b"/run/cloche/disk"
#: What is deleted is the host's again. The tables of inodes, all zero in a new image, need not be zeroed.
#: Nor need all of its bitmaps be read at once.
_OPTIONS = b"discard,noinit_itable,no_prefetch_block_bitmaps"
_FLAGS = MS_NOATIME | MS_NODEV | MS_NOSUID | MS_SILENT
#: With xino the kernel also follows what it has noted of a file's origin below (ovl_allow_offline_changes in
#: fs/overlayfs): a number of the file server's, which is another file's in the next guest. Two files then have one
#: inode, and the second of them is "stale".
_OVERLAY_OPTIONS = OVERLAY_OPTIONS.replace(b"xino=on", b"xino=off")
#: Where the system tree has nothing that a home could hide (``plan.stage``).
_NOT_BELOW = (b"/home/", b"/root", b"/var/")
#: What comes before this needs nothing of the disk's content.
_MOUNT = Mount(b"ext4", DEVICE, _DISK, _FLAGS, _OPTIONS)
_CHECK_PATH = b"PATH=/usr/sbin:/usr/bin:/sbin:/bin"


def add_layer(request: RunRequest, layer: Layer, size_bytes: int) -> RunRequest:
    """Return a request whose machine has the profile's disk, before all others."""
    disk = Disk(TAG, layer.image, most_bytes=size_bytes)
    return request._replace(layer=layer, disks=(disk, *request.disks))


def check_layer(request: RunRequest) -> None:
    """Look whether a machine as it is asked for can have a layer on a disk.

    Raises:
        UsageError: It cannot.
    """
    if request.devices == Devices.VMM:
        raise UsageError(
            "--devices=vmm cannot have a profile: its file system shows the system tree only once",
            hint="Leave out --devices, or give -t.",
        )


def build_place_steps(devices: str) -> tuple[Step, ...]:
    """Return the steps that make the places for the steps below and show the system tree once more.

    Args:
        devices: How the machine's devices are arranged.
    """
    return (
        Mkdir(_DISK, 0o700),
        Mkdir(_SYSTEM),
        Mkdir(_ROOT),
        Mkdir(_LAST, 0o700),
        mount_tree(SYSTEM_TAG, _SYSTEM, MS_RDONLY, devices=devices),
    )


def build_layer_steps(user: User, devices: str, *, has_places: bool) -> tuple[Step, ...]:
    """Return the steps that lay the disk's upper directory over the system tree, and make that the root.

    Args:
        user: Whose home is made at the profile's first start.
        devices: How the machine's devices are arranged.
        has_places: Whether the steps above were done before the machine was saved, with a drive for the disk.
    """
    home = encode(user.home)
    upper, work = _DISK + b"/" + UPPER.encode(), _DISK + b"/work"
    return (
        *(() if has_places else build_place_steps(devices)),
        _MOUNT,
        Mkdir(upper),
        Mkdir(work, 0o700),
        Mkdir(upper + home.rpartition(b"/")[0]),
        # The one in memory has been made already, and nobody has used it.
        CopyOnce(home, upper + home, user.uid, user.gid),
        Mount(
            b"overlay",
            b"cloche",
            _ROOT,
            MS_NOATIME,
            b"lowerdir=%s,upperdir=%s,workdir=%s," % (_SYSTEM, upper, work) + _OVERLAY_OPTIONS,
        ),
        *(_bind_home(upper + home, _ROOT + home) if home.startswith(_NOT_BELOW) else ()),
        # Below the new root nobody finds the mounts that it was made of.
        SwitchRoot(_ROOT),
    )


def _bind_home(source: bytes, target: bytes) -> tuple[Step, ...]:
    """Show a home as the disk's own directory: through the overlay each file made there costs nearly twice as much."""
    # Set-user-id programs are as on the rest of the layer, which the mount of the disk itself has not.
    return (
        Mount(b"", source, target, MS_BIND),
        Mount(b"", b"", target, MS_REMOUNT | MS_BIND | MS_NOATIME),
    )


def build_closing_steps() -> tuple[Step, ...]:
    """Return the steps after which everything is on the disk, and its file system as if it had been unmounted."""
    return (Mkdir(_LAST, 0o700), Mount(b"ext4", DEVICE, _LAST, _FLAGS, _OPTIONS), Settle(_LAST))


def plan_layer(layer: Layer, steps: tuple[Step, ...]) -> tuple[tuple[Step, ...], LayerPlan]:
    """Take a set-up apart where the disk is mounted, if it is to be checked before.

    Returns:
        What is done first, and the rest with all that concerns the layer.
    """
    plan = LayerPlan(layer.name, build_closing_steps())
    if layer.is_outdated:
        from cloche.plan.profile_scripts import APART, PYTHON, RENEW

        words = (*APART, *PYTHON, RENEW, "/")
        command = GuestCommand(tuple(word.encode() for word in words), (_CHECK_PATH,), b"/", 0, 0)
        plan = plan._replace(renewal=command)
    if not layer.needs_check or _MOUNT not in steps:
        return steps, plan
    at = steps.index(_MOUNT)
    check = GuestCommand((b"e2fsck", b"-p", DEVICE), (_CHECK_PATH,), b"/", 0, 0)
    return steps[:at], plan._replace(check=check, setup=steps[at:])
