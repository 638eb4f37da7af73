"""Why a guest could not put shares and mounts at their places (layer 5)."""

from __future__ import annotations

import errno
import os

from cloche.errors import ClocheError, LaunchError, MountError, ProfileError
from cloche.host.text import describe_errno, escape_untrusted
from cloche.model.guest import CheckPlace, Mkdir, Mount
from cloche.model.request import GuestMount, MountKind
from cloche.plan.guest import SYSTEM_PLACE
from cloche.plan.layers import DEVICE
from cloche.plan.places import outer_place
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.guest.messages import SetupFailed
    from cloche.model.guest import Step
    from cloche.model.plan import LaunchPlan
    from cloche.model.request import RunRequest
    from cloche.plan.places import Place

#: What guest/kernel.config has.
_KNOWN = "cloche's own kernel knows ext2, ext3, ext4, squashfs, erofs, ISO 9660, UDF and FAT"


def not_set_up(plan: LaunchPlan, answer: SetupFailed) -> ClocheError:
    """Return why a guest could not be set up, by what it says of a step."""
    layer = plan.layer
    steps = layer.setup if layer is not None and layer.check is not None else plan.setup
    known: ClocheError | None = None
    step = steps[answer.step] if answer.step < len(steps) else None
    if layer is not None and isinstance(step, Mount) and step.source == DEVICE:
        known = ProfileError(
            f"the disk of the profile {layer.name} cannot be mounted: {describe_errno(answer.errno)}",
            hint=f"`cloche profile revert {layer.name}` goes back to an earlier start; `cloche profile reset"
            f" {layer.name}` makes the disk anew.",
        )
    elif plan.request is not None and step is not None:
        known = why_not_mounted(plan.request, step, answer.errno)
    return known or LaunchError(
        f"the guest could not be set up: {escape_untrusted(answer.what, 200)}: {describe_errno(answer.errno)}",
        hint="--agent-log and --boot-log tell more.",
    )


def why_not_mounted(request: RunRequest, step: Step, code: int) -> ClocheError | None:
    """Return what is to be said of a step that failed; None when it was not about a share or a mount."""
    root = request.root
    if root is not None and isinstance(step, Mount) and step.target == SYSTEM_PLACE:
        mount = GuestMount(MountKind.HOST_IMAGE, "/", root.source, False, root.fs, root.part)
        return _bad_image(mount, request, code)
    place = _place_of(request, step)
    if place is None:
        return None
    if isinstance(step, CheckPlace):
        return _no_place(place, request, code)
    if isinstance(step, Mkdir) or not isinstance(place, GuestMount):
        return MountError(
            f"nothing can be mounted at {place.target}: {describe_errno(code)}", hint="Choose another place."
        )
    if place.kind == MountKind.HOST_IMAGE:
        return _bad_image(place, request, code)
    if code in (errno.ENOENT, errno.ENOTDIR) and place.kind == MountKind.GUEST_BIND:
        return MountError(
            f"{place.source} cannot be shown at {place.target}: the guest has no such directory",
            hint="Only what lies in /usr, /opt, the home, the shares and the mounts exists in the guest.",
        )
    return MountError(f"cannot mount {place.kind} at {place.target}: {describe_errno(code)}")


def _place_of(request: RunRequest, step: Step) -> Place | None:
    if isinstance(step, Mount):
        target = step.target
    elif isinstance(step, Mkdir):
        target = step.path
    elif isinstance(step, CheckPlace):
        target = step.root.rstrip(b"/") + b"/" + step.path
    else:
        return None
    places: tuple[Place, ...] = (*request.shares, *request.mounts)
    return next((place for place in places if os.fsencode(place.target) == target), None)


def _no_place(place: Place, request: RunRequest, code: int) -> MountError:
    outer = outer_place(place.target, (*request.shares, *request.mounts))
    within = outer.target if outer is not None else "/"
    if code == errno.ELOOP:
        return MountError(
            f"nothing can be mounted at {place.target}: a symbolic link of what is at {within} leads elsewhere",
            hint="Choose a place that is a directory by itself.",
        )
    return MountError(
        f"nothing can be mounted at {place.target}: what is at {within} has no such directory",
        hint="None is made in what is not the guest's own: make it there, or choose another place.",
    )


def _bad_image(mount: GuestMount, request: RunRequest, code: int) -> MountError:
    path = next(disk.path for disk in request.disks if disk.tag == mount.source)
    what = f"partition {mount.part} of {path}" if mount.part else path
    if code in (errno.ENOENT, errno.ENXIO, errno.ENOTBLK) and mount.part:
        return MountError(
            f"{path} has no partition {mount.part}", hint=f"`fdisk -l {path}` lists those it has."
        )
    if code == errno.ENODEV:
        return MountError(f"the guest's kernel has no file system {mount.fs}", hint=f"{_KNOWN}.")
    if code in (errno.EACCES, errno.EROFS, errno.EPERM):
        if mount.writable:
            return MountError(
                f"what is on {what} cannot be written to",
                hint="Say ro, or nothing: that is what it is by itself.",
            )
        return MountError(
            f"{what} was not closed cleanly, and has to be written to before it can be read",
            hint="Mount it once with rw, or mend it with `fsck`.",
        )
    if code == errno.EINVAL:
        kind = f"no {mount.fs} file system" if mount.fs else "no file system that the guest's kernel knows"
        more = "" if mount.part else "; an image with partitions needs part=N"
        return MountError(f"there is {kind} on {what}", hint=f"{_KNOWN}{more}.")
    return MountError(
        f"the file system on {what} is damaged: {describe_errno(code)}",
        hint="`fsck` mends what can be mended.",
    )
