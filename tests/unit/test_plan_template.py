"""Plans of machines that go on from a template, and of the machine that is one."""

from __future__ import annotations

import pytest

from cloche.drivers.qemu import abilities
from cloche.drivers.registry import find_driver
from cloche.model.guest import BindDevice, Clock, Entropy, Mount
from cloche.model.machine import EMPTY_DRIVE
from cloche.model.plan import OpenFile, Template
from cloche.model.request import Disk, Layer, Network, RunRequest
from cloche.plan.layers import add_layer, build_place_steps
from support.plans import KERNEL, TOOLS, facts, process, request, share, values

TEMPLATE = Template("/t", "/t/memory", OpenFile("/t/state", False, 15), 1, b"/memory/ram", bound=3)
DISKS = (Disk("one", "/one.img"), Disk("two", "/two.img"))
#: What two machines must have in common for one to go on where the other was saved.
MACHINE = ("-machine", "-accel", "-cpu", "-smp", "-m", "-object", "-global", "-serial")


def _restored(asked: RunRequest) -> tuple[tuple[bytes, ...], tuple[object, ...]]:
    plan = find_driver("qemu").plan(asked, facts(), KERNEL, TEMPLATE)
    return process(plan, "vmm").argv, plan.setup


def test_a_clone_is_the_same_machine() -> None:
    """All but the devices that come with the restore is the template's, its own devices' places too."""
    made = find_driver("qemu").plan_template(request(), facts(), KERNEL).processes[0].argv
    argv, _ = _restored(request(shares=(share("/a"),), disks=DISKS))
    for option in MACHINE:
        assert values(argv, option) == values(made, option)
    devices = values(made, "-device")
    assert len(devices) == 4
    assert values(argv, "-device")[:4] == devices


def test_a_template_knows_every_transport_and_no_share() -> None:
    """The kernel is told of all eight transports, with the numbers by which they are bound; its own come first."""
    plan = find_driver("qemu").plan_template(request(shares=(share("/a"),), disks=DISKS), facts(), KERNEL)
    assert [one.name for one in plan.processes] == ["vmm", "fs-system"]
    (line,) = values(plan.processes[0].argv, "-append")
    words = [word for word in line.split() if word.startswith("virtio_mmio.device=")]
    assert [word.rpartition(":")[2] for word in words] == ["7", "6", "5", "4", "2", "1", "0", "3"]
    assert words[1] == "virtio_mmio.device=512@0xfeb00c00:11:6"


def test_a_clone_boots_nothing_and_sees_no_kernel() -> None:
    """It waits for its state; neither kernel nor initramfs is in its jail."""
    plan = find_driver("qemu").plan(request(), facts(), KERNEL, TEMPLATE)
    vmm = process(plan, "vmm")
    assert not {b"-kernel", b"-initrd", b"-append"} & set(vmm.argv)
    assert values(vmm.argv, "-incoming") == ["defer"]
    assert vmm.files == (TEMPLATE.state,)
    assert KERNEL.path.encode() not in [getattr(op, "source", b"") for op in vmm.jail.root]


def test_time_and_randomness_come_before_everything() -> None:
    """The first steps are clock, fresh randomness, and the devices in the order of their places; then the mounts."""
    argv, steps = _restored(request(shares=(share("/a"),), disks=DISKS))
    slots = [word.partition("virtio-mmio-bus.")[2].partition(",")[0] for word in values(argv, "-device")]
    bound = [BindDevice(f"virtio-mmio.{slot}".encode()) for slot in slots if slot][3:]
    assert len(bound) == 3
    assert steps[: 2 + len(bound)] == (Clock(), Entropy(), *bound)
    assert any(isinstance(step, Mount) for step in steps[2 + len(bound) :])


def test_the_disk_of_a_profile_comes_into_the_drive_of_a_template() -> None:
    """The drive stands where the profile's disk does whatever else a run has, and only the others are bound."""
    driver = find_driver("qemu")
    kernel = KERNEL._replace(abilities=(EMPTY_DRIVE,))
    profiled = add_layer(request(shares=(share("/a"),), disks=DISKS), Layer("mine", "/mine.img"), 1 << 30)
    made = driver.plan_template(profiled, facts(), kernel)
    template = TEMPLATE._replace(bound=len(made.slots), drives=1)
    plan = driver.plan(profiled, facts(), kernel, template)
    drive = values(made.processes[0].argv, "-device")[-1]
    assert values(process(plan, "vmm").argv, "-device")[4] == drive
    # It is the same disk, as far as the guest's driver has looked at it.
    empty, disk = process(made, "disk-drive0"), process(plan, "disk-profile")
    own = (b"profile", b"drive0", b"--grows")
    assert [word for word in disk.argv if word not in own] == [word for word in empty.argv if word not in own]
    assert [file.path for file in empty.files + disk.files] == ["/empty", "/mine.img"]
    bound = [step for step in plan.setup if isinstance(step, BindDevice)]
    assert bound == [BindDevice(b"virtio-mmio.%d" % slot) for slot in plan.slots[4:]]
    assert len(bound) == 3
    assert set(build_place_steps(profiled.devices)) <= set(made.setup)
    assert not set(build_place_steps(profiled.devices)) & set(plan.setup)


def test_disks_without_partitions_come_into_drives() -> None:
    """As many as come before the first that has some, or is only read; the others, and a share, are bound."""
    driver = find_driver("qemu")
    kernel = KERNEL._replace(abilities=(EMPTY_DRIVE,))
    whole = tuple(disk._replace(is_whole=True) for disk in DISKS)
    for disks, count in (
        (whole, 2),
        ((*whole, Disk("three", "/3")), 2),
        ((DISKS[0], whole[1]), 0),
        (DISKS, 0),
    ):
        asked = request(shares=(share("/a"),), disks=disks)
        made = driver.plan_template(asked, facts(), kernel)
        assert len(made.slots) == 3 + count
        plan = driver.plan(asked, facts(), kernel, TEMPLATE._replace(bound=3 + count, drives=count))
        drives = values(made.processes[0].argv, "-device")[4:]
        assert values(process(plan, "vmm").argv, "-device")[4 : 4 + count] == drives
        bound = [step for step in plan.setup if isinstance(step, BindDevice)]
        assert bound == [BindDevice(b"virtio-mmio.%d" % slot) for slot in plan.slots[3 + count :]]
        assert len(bound) == 1 + len(disks) - count


def test_there_is_no_drive_where_nobody_would_look_into_it() -> None:
    """A kernel that does not look again into an empty drive gets none, and neither does a run without a profile."""
    driver = find_driver("qemu")
    knowing = KERNEL._replace(abilities=(EMPTY_DRIVE,))
    profiled = add_layer(request(), Layer("mine", "/mine.img"), 1 << 30)
    for asked, kernel in ((profiled, KERNEL), (request(), knowing), (request(disks=DISKS), knowing)):
        assert len(driver.plan_template(asked, facts(), kernel).slots) == 3


def test_an_emulated_machine_that_boots_takes_randomness_from_its_cpu() -> None:
    """Only a clone has to be given some."""
    plan = find_driver("qemu").plan(request(), facts(), KERNEL)
    assert not [step for step in plan.setup if isinstance(step, (Entropy, BindDevice))]
    assert plan.setup[0] == Clock()


@pytest.mark.parametrize(
    "asked, why",
    [
        (request(), ""),
        (request(disks=DISKS, shares=(share("/a"),), memory_mib=256, cpus=2), ""),
        (request(disks=tuple(Disk(f"d{n}", f"/{n}.img") for n in range(5))), ""),
        (request(disks=tuple(Disk(f"d{n}", f"/{n}.img") for n in range(6))), "no room"),
        (request(network=Network("/run/peer.sock", "02:00:00:00:00:01")), ""),
        (request(hwrng=True), "vhost-user-rng"),
        (request(vsock="/run/vsock"), "vhost-user-vsock"),
        (request(cold=True), "--cold"),
        (request(boot_log=True), "about a boot"),
        (request(boot_timeout_s=3.0), "about a boot"),
        (request(accelerator="kvm"), "KVM"),
    ],
)
def test_which_requests_can_go_on_from_one(asked: RunRequest, why: str) -> None:
    """What is about a boot boots, and so does what nobody has tried."""
    said = find_driver("qemu").why_cold(asked, facts(), KERNEL)
    assert (why in said) if why else (said == "")


def test_which_hosts_have_them() -> None:
    """A QEMU that saves no file server, a kernel without numbered transports, much to begin with, and KVM have none."""
    driver = find_driver("qemu")
    old = facts(tools=TOOLS._replace(qemu_version=(7, 2)))
    assert "State blocked by non-migratable device" in driver.why_cold(request(), old, KERNEL)
    assert "vhost-user-fs" in driver.why_cold(request(), old, KERNEL)
    assert driver.why_cold(request(), facts(), KERNEL._replace(machine="q35"))
    assert "/etc/skel" in driver.why_cold(request(), facts(skeleton=None), KERNEL)
    assert "KVM" in driver.why_cold(request(), facts(kvm=True), KERNEL)
    assert find_driver("bwrap").why_cold(request(), facts(), None)


def test_a_device_that_cannot_be_added_makes_a_run_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of device of a run is asked for, not only the one that every run has."""
    row = abilities.ABILITIES["vhost-user-blk"]
    refused = (row[0], row[1]._replace(added_at_restore="no"))
    monkeypatch.setitem(abilities.ABILITIES, "vhost-user-blk", refused)
    driver = find_driver("qemu")
    assert driver.why_cold(request(disks=DISKS), facts(), KERNEL) == "vhost-user-blk with QEMU 10.0: no"
    assert driver.why_cold(request(), facts(), KERNEL) == ""
