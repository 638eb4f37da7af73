"""The process of QEMU itself (layer 4, pure): its arguments, what it receives, and its jail."""

from __future__ import annotations

import os

from cloche.drivers.qemu import command
from cloche.drivers.qemu.jails import READ_ONLY, closed_jail, library_root
from cloche.model.jail import AS_IS, OWN, Bind, BindFlag, Dev, Tmpfs, TmpfsFlag
from cloche.model.machine import Accelerator
from cloche.model.plan import ProcessPlan
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.drivers.qemu.board import Board, DeviceParts
    from cloche.model.facts import HostFacts
    from cloche.model.jail import RootOp
    from cloche.model.machine import Machine
    from cloche.model.plan import OpenFile

_IF_THERE = READ_ONLY | BindFlag.OPTIONAL
#: Shown in QEMU's jail where the host has it: firmware.
_TREES = (b"/usr/share/qemu", b"/usr/share/seabios")


def plan_vmm(
    facts: HostFacts,
    machine: Machine,
    board: Board,
    devices: tuple[DeviceParts, ...],
    *,
    boot_log: bool,
    beginning: str = command.Beginning.BOOT,
    files: tuple[OpenFile, ...] = (),
) -> ProcessPlan:
    """Return the process of a machine with these devices; ``files`` are what a template is made of.

    Raises:
        HostError: The filter for QEMU was not built.
    """
    words = command.build_vmm_argv(
        facts.tools.qemu, machine, board, devices, boot_log=boot_log, beginning=beginning
    )
    policy = "qemu"
    caps = 0
    for device in devices:
        caps |= device.caps
        if device.inside:
            policy = "qemu-devices"
        elif device.reconnects:
            policy = "qemu-reconnect"
    root = _root(facts, machine, devices, boots=beginning != command.Beginning.RESTORE)
    jail = closed_jail(facts, policy, root, keep_caps=caps)
    if machine.accelerator == Accelerator.KVM and jail.gid == OWN:
        jail = jail._replace(gid=facts.kvm_group)
    if any(device.as_owner for device in devices):
        jail = jail._replace(uid=AS_IS, gid=AS_IS)
    return ProcessPlan(
        name="vmm",
        argv=tuple(word.encode("utf-8", "surrogateescape") for word in words),
        env=(b"TMPDIR=/tmp",),
        descriptors=tuple(descriptor for device in devices for descriptor in device.descriptors),
        jail=jail,
        files=(*files, *(file for device in devices for file in device.files)),
    )


def _root(
    facts: HostFacts, machine: Machine, devices: tuple[DeviceParts, ...], *, boots: bool
) -> tuple[RootOp, ...]:
    root: list[RootOp] = [Bind(tree, tree, _IF_THERE | BindFlag.RECURSIVE) for tree in _TREES]
    root += [
        *library_root(facts),
        Bind(os.fsencode(facts.tools.qemu), os.fsencode(facts.tools.qemu), _IF_THERE),
        *(op for device in devices for op in device.root),
        Dev(b"/dev"),
        Tmpfs(b"/tmp", 1 << 20, 0o700),
        Tmpfs(
            command.MEMORY_PATH.encode(),
            (machine.memory_mib << 20) + command.HUGE_PAGE,
            0o700,
            TmpfsFlag.HUGE_PAGES,
        ),
    ]
    if boots:
        root += [
            Bind(os.fsencode(machine.kernel.path), command.KERNEL_PATH.encode(), READ_ONLY),
            Bind(os.fsencode(machine.kernel.initrd), command.INITRD_PATH.encode(), READ_ONLY),
        ]
    if machine.accelerator == Accelerator.KVM:
        root.append(Bind(b"/dev/kvm", b"/dev/kvm", BindFlag.NOSUID))
    return tuple(root)
