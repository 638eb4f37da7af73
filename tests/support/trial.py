"""Trying what QEMU allows a device: to be there at the boot, to be added at a restore, to be saved while it is used."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from cloche.model.guest import BindDevice
from support.guestwork import Work, bring, setup
from support.tried import SLOT
from support.vmm import Qemu, QemuError, session, vmm

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.tried import Device, OwnDisk
    from support.vmm import Vmm


class Template(NamedTuple):
    """A booted machine that waits for its host, with nothing but the control port."""

    state: Path
    memory: Path


class Outcome(NamedTuple):
    """What came of a trial: of each way either nothing (it works) or what QEMU said."""

    added_at_restore: str
    saved: str


class Toolbox(NamedTuple):
    """What every trial needs.

    Attributes:
        qemu: With which QEMU.
        template: A template of that QEMU.
        program: ``guestio.c``, compiled.
        room: A directory on a tmpfs.
    """

    qemu: Qemu
    template: Template
    program: Path
    room: Path

    def directory(self, name: str) -> Path:
        """Make a directory of this trial's."""
        path = self.room / name
        path.mkdir()
        return path


def copy_memory(source: Path, target: Path) -> None:
    """Copy a guest's memory; its holes stay holes."""
    subprocess.run(["cp", "--sparse=always", str(source), str(target)], check=True)


def make_template(qemu: Qemu, room: Path) -> Template:
    """Boot a machine until its agent waits, and save it."""
    with vmm(qemu, room) as first:
        first.ask("cont")
        first.wait_for("VSERPORT_CHANGE", open=True)
        first.ask("stop")
        first.save(room / "state")
    return Template(room / "state", first.memory)


def try_device(device: Device, tools: Toolbox) -> Outcome:
    """Try a device in all three ways. That it works when it is there at the boot is taken for granted.

    Whatever works by halves (is added and gives wrong data, is saved and stands still) fails here.
    """
    scratch = prepare(device, tools)
    return Outcome(_try_to_add(device, tools, scratch), _try_to_save(device, tools, scratch))


def prepare(device: Device, tools: Toolbox) -> Path:
    """Make a directory with what the device keeps."""
    scratch = tools.directory("device")
    device.prepare(scratch, tools.program)
    return scratch


def _try_to_add(device: Device, tools: Toolbox, scratch: Path) -> str:
    place = tools.directory("added")
    copy_memory(tools.template.memory, place / "memory")
    with ExitStack() as stack:
        words = stack.enter_context(device.start(scratch))
        try:
            machine = stack.enter_context(vmm(tools.qemu, place, words, incoming=True))
            machine.load(tools.template.state)
        except QemuError as error:
            return str(error)
        guest = stack.enter_context(session(machine.control))
        setup(guest, BindDevice(b"virtio-mmio.%d" % SLOT), *device.steps, bring(tools.program))
        device.use(guest, scratch)
    return ""


def _try_to_save(device: Device, tools: Toolbox, scratch: Path) -> str:
    try:
        save_and_load(device, tools, scratch)
    except QemuError as error:
        return str(error)
    return ""


def save_and_load(
    device: Device, tools: Toolbox, scratch: Path, meanwhile: Callable[[], None] | None = None
) -> None:
    """Boot a machine, save it while it uses the device, load it with a new process behind the device, and go on.

    Raises:
        QemuError: It cannot be saved, or not loaded.
    """
    before, after = tools.directory("before"), tools.directory("after")
    with ExitStack() as stack:
        with ExitStack() as first:
            machine = _boot(device, tools, before, scratch, first)
            guest = stack.enter_context(session(machine.control))
            setup(guest, *device.steps, bring(tools.program))
            device.use(guest, scratch)
            work = device.begin(guest)
            machine.save(before / "state")
        if meanwhile is not None:
            meanwhile()
        shutil.move(machine.memory, after / "memory")
        words = stack.enter_context(device.start(scratch))
        machine = stack.enter_context(vmm(tools.qemu, after, words, incoming=True))
        machine.load(before / "state")
        guest.path = machine.control
        work.go_on()
        assert work.finish() == ""
        device.use(guest, scratch)


def _boot(device: Device, tools: Toolbox, place: Path, scratch: Path, stack: ExitStack) -> Vmm:
    try:
        words = stack.enter_context(device.start(scratch))
        machine = stack.enter_context(vmm(tools.qemu, place, words))
        machine.ask("cont")
    except QemuError as error:
        raise AssertionError(f"the machine does not even start: {error}") from error
    return machine


def try_moving_memory(
    disk: OwnDisk, tools: Toolbox, *, with_memory: bool, loading: OwnDisk | None = None
) -> str:
    """Save a machine while its disk fills memory that no program touches, and load it; return what was wrong then.

    Args:
        disk: The disk.
        tools: What every trial needs.
        with_memory: Whether the memory is copied into the state page by page, while the machine goes on, or lies in
            a file of its own that both machines use.
        loading: Another build of the disk, for the machine that is loaded.
    """
    scratch, before, after = prepare(disk, tools), tools.directory("before"), tools.directory("after")
    with ExitStack() as stack:
        with ExitStack() as first:
            machine = _boot(disk, tools, before, scratch, first)
            guest = stack.enter_context(session(machine.control))
            setup(guest, *disk.steps, bring(tools.program))
            work = Work(guest, "buffers", "/dev/vda")
            if with_memory:
                # Slow at first, so that every page has been copied once when the disk fills it again.
                machine.ask("migrate-set-parameters", **{"max-bandwidth": 16 << 20, "downtime-limit": 1})
                machine.start_saving(before / "state", with_memory=True)
                machine.wait_for("MIGRATION_PASS", **{"pass": 2})
                work.go_on()
                machine.ask("migrate-set-parameters", **{"max-bandwidth": 1 << 40, "downtime-limit": 60000})
                machine.wait_for("MIGRATION", status="completed")
            else:
                machine.save(before / "state")
        if not with_memory:
            shutil.move(machine.memory, after / "memory")
        words = stack.enter_context((loading or disk).start(scratch))
        machine = stack.enter_context(vmm(tools.qemu, after, words, incoming=True))
        machine.load(before / "state", with_memory=with_memory)
        guest.path = machine.control
        return work.finish()
