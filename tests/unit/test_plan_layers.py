"""The writable layer on a profile's disk: where it stands in a guest's set-up, and what is done at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cloche.errors import UsageError
from cloche.model.guest import MS_BIND, CopyOnce, Mkdir, Mount, Settle, SwitchRoot
from cloche.model.machine import Devices
from cloche.model.request import Layer, RunRequest, Share
from cloche.plan.guest import build_machine_steps
from cloche.plan.layers import (
    add_layer,
    build_closing_steps,
    build_layer_steps,
    build_place_steps,
    check_layer,
    plan_layer,
)
from support.plans import ALICE

if TYPE_CHECKING:
    from cloche.model.guest import Step

LAYER = Layer("mine", "/data/mine/disk.img")


BEGINS = Mkdir(b"/cloche/disk", 0o700)


def steps_of(request: RunRequest, *, restored: bool = False, has_places: bool = False) -> tuple[Step, ...]:
    """Return the set-up of a guest."""
    return build_machine_steps(
        *(request, ALICE, ALICE, ()),
        hostname="cloche",
        loopback=True,
        entropy=True,
        restored=restored,
        has_places=has_places,
    )


def test_the_disk_is_the_first() -> None:
    """The guest finds the profile's disk as its first, whatever others it has."""
    request = add_layer(RunRequest((b"true",)), LAYER, 20 << 30)
    assert [(disk.tag, disk.path, disk.writable) for disk in request.disks] == [
        ("profile", LAYER.image, True)
    ]


@pytest.mark.parametrize("restored", [False, True])
def test_the_layer_is_laid_before_what_is_shared(restored: bool) -> None:
    """First the disk, then the home, then the new root; shares are mounted in that root."""
    share = Share("/srv", "/srv", False)
    request = add_layer(RunRequest((b"true",), shares=(share,)), LAYER, 20 << 30)
    steps = steps_of(request, restored=restored)
    kinds = [type(step) for step in steps]
    begins = steps.index(BEGINS)
    switch = len(kinds) - 1 - kinds[::-1].index(SwitchRoot)
    disk = next(
        index
        for index, step in enumerate(steps)
        if isinstance(step, Mount) and step.fstype == b"ext4" and step.source == b"/dev/vda"
    )
    home = kinds.index(CopyOnce)
    shared = next(
        index for index, step in enumerate(steps) if isinstance(step, Mount) and step.target == b"/srv"
    )
    assert begins < disk < home < switch < shared
    overlay = next(s for s in steps[begins:] if isinstance(s, Mount) and s.fstype == b"overlay")
    assert overlay.data.endswith(b"index=off,metacopy=off,redirect_dir=off,xino=off")


def test_the_places_can_have_been_made_before() -> None:
    """A machine that was saved with a drive for the disk has the places, and the tree below, and makes none again."""
    request = add_layer(RunRequest((b"true",)), LAYER, 20 << 30)
    places = build_place_steps(request.devices)
    whole = steps_of(request, restored=True)
    at = whole.index(BEGINS)
    assert whole[at : at + len(places)] == places
    assert steps_of(request, restored=True, has_places=True) == whole[:at] + whole[at + len(places) :]


def test_a_home_is_the_disks_own_where_nothing_is_below_it() -> None:
    """A home is not looked at through the overlay; one within the system's programs is, else it would hide them."""
    for home, is_bound in (("/home/alice", True), ("/root", True), ("/usr/sbin", False), ("/", False)):
        steps = build_layer_steps(ALICE._replace(home=home), Devices.PROCESS, has_places=True)
        bound = [s.target for s in steps if isinstance(s, Mount) and s.flags & MS_BIND and s.source]
        assert bound == [b"/cloche/root" + home.encode()] * is_bound


def test_without_a_profile_nothing_is_different() -> None:
    """A run without a profile has no step of one."""
    steps = steps_of(RunRequest((b"true",)))
    assert BEGINS not in steps
    assert sum(isinstance(step, SwitchRoot) for step in steps) == 1


def test_a_check_comes_before_the_mount() -> None:
    """Where the disk was not closed cleanly the set-up is done in two parts, and the check in between."""
    request = add_layer(RunRequest((b"true",)), LAYER, 20 << 30)
    steps = steps_of(request)
    whole, plan = plan_layer(LAYER, steps)
    assert (whole, plan.check, plan.setup) == (steps, None, ())
    first, plan = plan_layer(LAYER._replace(needs_check=True), steps)
    assert plan.check is not None
    assert plan.check.argv == (b"e2fsck", b"-p", b"/dev/vda")
    assert first + plan.setup == steps
    assert not any(isinstance(step, Mount) and step.fstype == b"ext4" for step in first)
    # A machine that goes on has its disk mounted already.
    assert plan_layer(LAYER._replace(needs_check=True), ())[1].check is None


def test_the_end_settles_the_same_disk() -> None:
    """At the end the same file system is mounted once more, with the same options, and settled."""
    *_, mount, settle = build_closing_steps()
    assert isinstance(mount, Mount)
    assert isinstance(settle, Settle)
    request = add_layer(RunRequest((b"true",)), LAYER, 20 << 30)
    laid = next(s for s in steps_of(request) if isinstance(s, Mount) and s.fstype == b"ext4")
    assert mount._replace(target=laid.target) == laid
    assert settle.path == mount.target


def test_what_shows_the_tree_once_has_no_profile() -> None:
    """--devices=vmm is refused."""
    with pytest.raises(UsageError, match="--devices=vmm"):
        check_layer(RunRequest((b"true",), devices=Devices.VMM))
