"""Where in the guest things of the host and mounts may be, and in which order they come there (layer 2, pure)."""

from __future__ import annotations

from cloche.errors import MountError, ShareError
from cloche.model.request import GuestMount, MountKind
from cloche.plan.shares import contains
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloche.model.request import Include, Share

    Place = Share | GuestMount

#: Trees without which nothing runs in the guest: a share on top of one would take the ground away. Below is allowed.
_PROGRAMS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_GROUND = ("/etc", "/usr", *_PROGRAMS, *(f"/usr{tree}" for tree in _PROGRAMS))
#: Trees that the guest's kernel and agent fill when everything else is in place: what is put there would be hidden.
_TAKEN = ("/dev", "/proc", "/sys", "/run", "/var/run", "/var/lock")
_MOST = 64
_ELSEWHERE = "Choose another place, for a share with :at=PATH."
_ONE_ELSEWHERE = "Give one of them another place with at=PATH."


def check_places(
    shares: tuple[Share, ...], includes: tuple[Include, ...] = (), mounts: tuple[GuestMount, ...] = ()
) -> None:
    """Refuse shares, mounts and copies that cannot be where they are asked to be.

    A share may lie in another one only where the host has it there too: its mount point must exist, and none is made
    in somebody's directory.

    Raises:
        ShareError, MountError: A reserved place, the same place twice, one in the other, or too many.
    """
    count = len(shares) + len(includes) + len(mounts)
    if count > _MOST:
        raise ShareError(
            f"{count} shares, mounts and includes are more than a domain's {_MOST}",
            hint="Share a directory that holds several of them.",
        )
    seen: set[str] = set()
    places: tuple[Place, ...] = (*shares, *mounts)
    for place in places:
        error = _error_for(place)
        what = "a mount" if isinstance(place, GuestMount) else "a share"
        _check_place(error, what, place.target)
        if place.target in _GROUND:
            raise error(f"{what} cannot be at {place.target}: that is the guest's own", hint=_ELSEWHERE)
        if place.target in seen:
            raise error(f"two {what[2:]}s are at {place.target}", hint=_ONE_ELSEWHERE)
        seen.add(place.target)
    _check_nested(shares)
    order_places(shares, mounts)
    for include in includes:
        _check_place(ShareError, "a copy", include.target)
        if include.target in seen:
            raise ShareError(
                f"two things are to be at {include.target}", hint="Include one of them at another place."
            )
        seen.add(include.target)
        _check_copy(include.target, shares, mounts)


def _error_for(place: Place) -> type[MountError | ShareError]:
    return MountError if isinstance(place, GuestMount) else ShareError


def _check_place(error: type[MountError | ShareError], what: str, target: str) -> None:
    if target == "/":
        raise error(f"{what} cannot be at /: nothing of the guest would be left", hint=_ELSEWHERE)
    taken = next((tree for tree in _TAKEN if contains(tree, target)), None)
    if taken is not None:
        raise error(f"{what} cannot be at {target}: the guest fills {taken} itself", hint=_ELSEWHERE)


def _check_nested(shares: tuple[Share, ...]) -> None:
    for share in shares:
        for outer in shares:
            if outer.target == share.target or not contains(outer.target, share.target):
                continue
            if share.source != outer.source.rstrip("/") + share.target[len(outer.target) :]:
                raise ShareError(
                    f"the share at {share.target} would lie in the one at {outer.target}", hint=_ONE_ELSEWHERE
                )


def _check_copy(target: str, shares: tuple[Share, ...], mounts: tuple[GuestMount, ...]) -> None:
    for share in shares:
        if contains(share.target, target):
            raise ShareError(
                f"a copy cannot be at {target}: it would be made in the shared directory {share.source}",
                hint="Put the file there yourself, or include it at another place.",
            )
    for mount in mounts:
        if contains(mount.target, target):
            raise ShareError(
                f"a copy cannot be at {target}: the mount at {mount.target} would hide it",
                hint="Include it at another place.",
            )


def order_places(shares: Sequence[Share], mounts: Sequence[GuestMount]) -> tuple[Place, ...]:
    """Return shares and mounts in the order in which they are mounted, whatever the order in which they were given.

    What lies in another one comes after it, and a directory of the guest that is shown at another place comes after
    all that lies in it, or that it lies in. Else they go by their places.

    Raises:
        MountError: There is no such order.
    """
    waiting: list[Place] = sorted((*shares, *mounts), key=lambda place: place.target)
    ordered: list[Place] = []
    while waiting:
        ready = next((one for one in waiting if not any(_needs(one, other) for other in waiting)), None)
        if ready is None:
            one, other = next((one, other) for one in waiting for other in waiting if _needs(one, other))
            if one is other:
                raise MountError(
                    f"{one.target} and what is to be shown there lie one in the other",
                    hint="Choose another place with at=PATH.",
                )
            raise MountError(
                f"the mounts at {one.target} and {other.target} need each other, so none can be the first",
                hint=_ONE_ELSEWHERE,
            )
        ordered.append(ready)
        waiting.remove(ready)
    return tuple(ordered)


def _needs(one: Place, other: Place) -> bool:
    """Tell whether ``other`` must be mounted before ``one``."""
    if one is not other and contains(other.target, one.target):
        return True
    if not (isinstance(one, GuestMount) and one.kind == MountKind.GUEST_BIND):
        return False
    return contains(other.target, one.source) or contains(one.source, other.target)


def outer_place(target: str, places: Sequence[Place]) -> Place | None:
    """Return the innermost of the shares and mounts in which a place lies."""
    around = [one for one in places if one.target != target and contains(one.target, target)]
    return max(around, key=lambda one: len(one.target), default=None)
