"""Where a machine's devices are: what each arrangement plans, and what it gives up."""

from __future__ import annotations

import pytest

from cloche.domain.describe import describe_plan
from cloche.errors import HostError, UsageError
from cloche.model.guest import Mount
from cloche.model.jail import AS_IS, OWN, Bind, BindFlag
from cloche.model.machine import NOT_APART, Devices
from cloche.model.request import Disk
from support.plans import KERNEL, ROOT, facts, plan, process, request, share, values

DISKS = (Disk("home", "/disk.img", most_bytes=1 << 20), Disk("old", "/old.qcow2", "qcow2", writable=False))
ARRANGEMENTS = (Devices.PROCESS, Devices.BUNDLED, Devices.VMM)
_RLIMIT_FSIZE = 1


@pytest.mark.parametrize(
    "devices, names",
    [
        (Devices.PROCESS, ["vmm", "fs-system", "fs-shares", "disk-home", "disk-old", "rng"]),
        (Devices.BUNDLED, ["vmm", "devices"]),
        (Devices.VMM, ["vmm"]),
    ],
)
def test_devices_are_where_they_are_asked_for(devices: str, names: list[str]) -> None:
    """Each has a process of its own, or all have one, or none has one; the images are open where the disks are."""
    made = plan(request(shares=(share("/data"),), disks=DISKS, hwrng=True, devices=devices))
    assert [one.name for one in made.processes] == names
    files = [file.path for one in made.processes for file in one.files]
    assert files == ["/disk.img", "/old.qcow2"]
    machine = values(process(made, "vmm").argv, "-device")
    assert len(machine) == 7  # serial and its port, two trees, two disks, random numbers
    assert len({word.partition("bus=")[2].partition(",")[0] for word in machine}) == 7
    assert made.devices == devices
    assert (devices in NOT_APART) == ("devices     " in describe_plan(made))


@pytest.mark.parametrize("devices", ARRANGEMENTS)
def test_a_device_that_is_not_asked_for_costs_nothing(devices: str) -> None:
    """Without --hwrng nothing of a plan has to do with random numbers."""
    made = plan(request(devices=devices))
    assert not any(b"rng" in word for one in made.processes for word in one.argv)


@pytest.mark.parametrize("devices, kind", [(Devices.BUNDLED, b"virtiofs"), (Devices.VMM, b"9p")])
def test_the_guest_mounts_what_it_gets(devices: str, kind: bytes) -> None:
    """The guest's steps name the file system that its devices speak."""
    steps = plan(request(shares=(share("/data"),), devices=devices)).setup
    kinds = [
        step.fstype for step in steps if isinstance(step, Mount) and step.source in (b"system", b"shares")
    ]
    assert kinds == [kind, kind]


def test_one_jail_holds_what_any_of_its_devices_needs() -> None:
    """A bundle sees all trees, its file servers divide its descriptors, and root's may give files their owner."""
    asked = request(shares=(share("/data", writable=True),), disks=DISKS, devices=Devices.BUNDLED)
    bundle = process(plan(asked, facts(ROOT)), "devices")
    places = {op.path for op in bundle.jail.root if isinstance(op, Bind)}
    assert {b"/stage/system/usr", b"/stage/shares/0"} <= places
    assert bundle.argv.count(b"2048") == 2
    reader = 1 << 2
    assert bundle.jail.keep_caps & ~reader
    assert bundle.jail.uid == AS_IS
    alone = process(plan(request(devices=Devices.BUNDLED), facts(ROOT)), "devices").jail
    assert (alone.keep_caps, alone.uid) == (reader, OWN)
    few = facts()._replace(nofile_hard=200)
    plan(request(), few)
    with pytest.raises(HostError, match="needs 256"):
        plan(request(devices=Devices.BUNDLED), few)


@pytest.mark.parametrize("devices", [Devices.BUNDLED, Devices.VMM])
def test_images_cannot_grow_where_no_share_can(devices: str) -> None:
    """The limit on files holds a bundle and a VMM with disks, too, but where the guest may write to a share."""
    served_by = "devices" if devices == Devices.BUNDLED else "vmm"
    limits = [
        {number: soft for number, soft, _ in process(made, served_by).jail.rlimits}.get(_RLIMIT_FSIZE)
        for made in (
            plan(request(disks=DISKS[:1], devices=devices)),
            plan(request(disks=DISKS[:1], devices=devices, shares=(share("/data", writable=True),))),
            plan(request(devices=devices)),
        )
    ]
    least = 1 << 20 if devices == Devices.BUNDLED else (1024 << 20) + (2 << 20)
    assert limits == [least, None, None]


def test_trees_in_the_vmm_are_read_only_twice() -> None:
    """9p refuses to write to a tree that may not be changed, and its mounts do, too."""
    made = plan(request(shares=(share("/data"),), devices=Devices.VMM))
    vmm = process(made, "vmm")
    assert ["readonly=on" in word for word in values(vmm.argv, "-fsdev")] == [True, True]
    asked = request(shares=(share("/data", writable=True),), devices=Devices.VMM)
    fsdevs = values(process(plan(asked), "vmm").argv, "-fsdev")
    assert ["readonly=on" in word for word in fsdevs] == [True, False]
    for op in vmm.jail.root:
        if isinstance(op, Bind) and op.path.startswith(b"/stage/"):
            assert op.flags & BindFlag.READ_ONLY
    assert any("belong to nobody" in line for line in made.notices)
    assert not plan(request(devices=Devices.VMM), facts(ROOT)).notices[1:]


def test_what_no_arrangement_has_is_refused() -> None:
    """An unknown arrangement, and 9p on a kernel without it, are refused."""
    with pytest.raises(UsageError, match="no arrangement 'apart'"):
        plan(request(devices="apart"))
    for devices in NOT_APART:
        with pytest.raises(UsageError, match="cannot do --share-later"):
            plan(request(devices=devices, share_later=True))
    from cloche.drivers.qemu.plan import plan_launch

    q35 = KERNEL._replace(kind="fetched", machine="q35")
    with pytest.raises(UsageError, match="9p"):
        plan_launch(request(devices=Devices.VMM), facts(), q35)
    plan_launch(request(devices=Devices.BUNDLED), facts(), q35)
