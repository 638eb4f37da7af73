"""Shares that come and go while a machine runs (layer 2, pure): what the guest is asked to do for them."""

from __future__ import annotations

from cloche.model.guest import (
    MNT_DETACH,
    MS_NODEV,
    MS_NOSUID,
    MS_REMOUNT,
    UMOUNT_NOFOLLOW,
    Mkdir,
    Mount,
    Step,
    Unmount,
)
from cloche.plan.guest import ASIDE, SHARES_TAG
from cloche.plan.mounts import bind_share, make_place
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.model.facts import User
    from cloche.model.request import Share
    from cloche.plan.places import Place


def build_add_steps(number: int, share: Share, user: User, others: tuple[Place, ...]) -> tuple[Step, ...]:
    """Return the steps that put a share, which is in the stage under ``number``, at its place in a running guest."""
    return (
        Mkdir(ASIDE, 0o700),
        Mount(b"virtiofs", SHARES_TAG, ASIDE, MS_NOSUID | MS_NODEV),
        *make_place(share, others, user),
        *bind_share(share, b"%s/%d" % (ASIDE, number)),
        Unmount(ASIDE, MNT_DETACH | UMOUNT_NOFOLLOW),
    )


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
