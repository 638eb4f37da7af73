"""Shares that come and go while a machine runs (layer 2, pure): what the guest is asked to do for them."""

from __future__ import annotations

from cloche.model.guest import (
    MNT_DETACH,
    MS_BIND,
    MS_NODEV,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    UMOUNT_NOFOLLOW,
    Mkdir,
    Mount,
    Step,
    Unmount,
)
from cloche.plan.guest import ASIDE, SHARES_TAG, encode, make_directory
from cloche.plan.shares import contains
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.model.facts import User
    from cloche.model.request import Share


def build_add_steps(number: int, share: Share, user: User, others: tuple[Share, ...]) -> tuple[Step, ...]:
    """Return the steps that put a share, which is in the stage under ``number``, at its place in a running guest."""
    target = encode(share.target)
    steps: list[Step] = [
        Mkdir(ASIDE, 0o700),
        Mount(b"virtiofs", SHARES_TAG, ASIDE, MS_NOSUID | MS_NODEV),
    ]
    if not any(contains(other.target, share.target) for other in others):
        # In another share it is there already (``shares.check_places``).
        steps += make_directory(share.target, user)
    steps.append(Mount(b"", b"%s/%d" % (ASIDE, number), target, MS_BIND | MS_REC))
    if not share.writable:
        steps.append(Mount(b"", b"", target, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV))
    steps.append(Unmount(ASIDE, MNT_DETACH | UMOUNT_NOFOLLOW))
    return tuple(steps)


def build_undo_steps(steps: tuple[Step, ...], failed: int) -> tuple[tuple[Step, ...], ...]:
    """Return what takes back ``steps`` of which the one with the index ``failed`` was not done, each for itself."""
    undo: list[tuple[Step, ...]] = []
    for step in reversed(steps[:failed]):
        if isinstance(step, Mount) and not step.flags & MS_REMOUNT:
            undo.append(build_remove_steps(step.target, forced=True))
    return tuple(undo)


def build_remove_steps(target: bytes, *, forced: bool) -> tuple[Step, ...]:
    """Return the step that takes a share away in the guest; unless ``forced`` it fails while somebody uses it."""
    return (Unmount(target, UMOUNT_NOFOLLOW | (MNT_DETACH if forced else 0)),)
