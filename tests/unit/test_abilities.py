"""Which plans are said to be saveable; what QEMU really does is tried in tests/domain/test_abilities.py."""

from __future__ import annotations

import pytest

from cloche.domain.describe import describe_plan
from cloche.drivers.qemu.abilities import ABILITIES, TRIED, ability, device_kinds, why_not_saveable
from cloche.drivers.registry import find_driver
from cloche.model.request import Disk
from support.plans import KERNEL, TOOLS, facts, plan, process, request, share

EVERYTHING = request(shares=(share("/data", writable=True),), disks=(Disk("home", "/home/alice/disk.img"),))


def test_every_version_that_was_tried_has_an_entry() -> None:
    """A version in between is taken for the older of its neighbours, one out of the range for the nearest."""
    assert all(len(row) == len(TRIED) for row in ABILITIES.values())
    old, new = ABILITIES["vhost-user-fs"]
    assert old != new
    assert [ability("vhost-user-fs", version) for version in ((6, 2), (7, 2), (8, 2), (9, 9))] == [old] * 4
    assert [ability("vhost-user-fs", version) for version in ((10, 0), (10, 1), (11, 0))] == [new] * 3


def test_what_nobody_has_tried_is_not_promised() -> None:
    """A kind of device that is not in the table is neither added nor saved."""
    assert all(ability("virtio-gpu", (10, 0)))
    assert why_not_saveable((b"qemu", b"-device", b"virtio-gpu-pci,id=a"), (10, 0)) == (
        "virtio-gpu with QEMU 10.0: nobody has tried it"
    )


def test_the_kinds_of_devices_of_a_plan() -> None:
    """The devices are found in the arguments that QEMU gets, and every kind that a plan can have was tried."""
    argv = process(plan(EVERYTHING), "vmm").argv
    kinds = list(device_kinds(argv))
    assert kinds == ["virtio-serial", "vhost-user-fs", "vhost-user-fs", "vhost-user-blk"]
    assert set(kinds) <= ABILITIES.keys()


@pytest.mark.parametrize(
    "version, machine, expected",
    [
        ((10, 0), "microvm", "yes"),
        ((7, 2), "microvm", "no: vhost-user-fs with QEMU 7.2: State blocked by non-migratable device"),
        ((10, 0), "q35", "no: nobody has tried it with anything but microvm"),
    ],
)
def test_a_plan_says_whether_it_can_be_saved(version: tuple[int, int], machine: str, expected: str) -> None:
    """--dry-run says in one line whether the domain can be saved, or why not."""
    host = facts(tools=TOOLS._replace(qemu_version=version))
    driver = find_driver("qemu")
    made = driver.plan(EVERYTHING, host, KERNEL._replace(machine=machine))
    text = describe_plan(made, driver.why_not_saveable(made, host))
    assert f"\nsaveable    {expected}\n" in text


def test_a_container_cannot_be_saved() -> None:
    """The bwrap driver says so."""
    made = plan(request(), driver="bwrap")
    assert "container" in find_driver("bwrap").why_not_saveable(made, facts())
