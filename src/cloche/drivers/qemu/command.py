"""QEMU's command line and the guest kernel's (layer 4, pure)."""

from __future__ import annotations

from cloche.model.machine import Accelerator
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from cloche.model.machine import Machine

#: Descriptor numbers inside the VMM.
CONTROL_FD, SYSTEM_FD, SHARES_FD, MONITOR_FD, CONSOLE_FD = 10, 11, 12, 13, 14

#: Where the VMM's jail shows the kernel and its initramfs.
KERNEL_PATH, INITRD_PATH = "/boot/kernel", "/boot/initrd"

#: Where the VMM's jail has room for the guest's memory, and a huge page of x86-64 in bytes.
MEMORY_PATH = "/memory"
HUGE_PAGE = 2 << 20

#: Where the VMM's jail shows the sockets of the disks.
DISK_SOCKETS = "/run/disks"

#: Transports for disks, from the highest of those that the other devices leave; number 3 shares its interrupt with the
#: clock and comes last.
_DISK_SLOTS = (4, 2, 1, 0, 3)

#: What virtio-mmio offers a guest whatever the device is set to; the notes on requests in flight must have as many.
_DISK_QUEUE = 1024

#: How long QEMU waits before it connects to a disk again, in milliseconds (whole seconds where it knows no others).
_RECONNECT_MS = 50
_RECONNECT_MS_SINCE = (9, 2)

#: Where QEMU's microvm has its eight virtio-mmio transports.
_SLOT_BASE = 0xFEB00000


class MachineOptions(Record):
    """What a machine's command line depends on besides ``Machine``.

    Attributes:
        shares: Whether there is a second file server.
        serial: Whether the guest has a serial port (on ``CONSOLE_FD``).
        boot_log: Whether the kernel reports every step of its boot there.
        disks: How many disks there are.
        qemu_version: (major, minor).
    """

    shares: bool
    serial: bool
    boot_log: bool
    disks: int = 0
    qemu_version: tuple[int, int] = (7, 2)


def build_vmm_argv(qemu: str, machine: Machine, options: MachineOptions) -> tuple[str, ...]:
    """Return QEMU's arguments: a machine with a control port, file servers and nothing else."""
    microvm = machine.kernel.machine == "microvm"
    bus = "device" if microvm else "pci"
    memory = f"{machine.memory_mib}M"
    argv = [
        qemu,
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        *("-display", "none"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-machine", _machine_word(machine, options)),
        *_accelerator(machine),
        *("-smp", str(machine.cpus)),
        *("-m", memory),
        # vhost-user backends map the guest's memory, so it must be shared and have a descriptor. A memfd would be in
        # small pages on most hosts; mappings of huge ones must begin at a multiple of their size.
        *(
            "-object",
            f"memory-backend-file,id=memory,size={memory},mem-path={MEMORY_PATH},share=on,align={HUGE_PAGE >> 20}M",
        ),
        *("-kernel", KERNEL_PATH),
        *("-initrd", INITRD_PATH),
        *("-append", build_kernel_command_line(machine, options)),
        *("-chardev", f"socket,id=monitor,fd={MONITOR_FD}"),
        *("-mon", "chardev=monitor,mode=control"),
        *("-chardev", f"socket,id=control,fd={CONTROL_FD},server=on,wait=off"),
        *("-device", f"virtio-serial-{bus},id=serial0,max_ports=2"),
        *("-device", "virtserialport,bus=serial0.0,nr=1,chardev=control,name=cloche.0"),
        *("-chardev", f"socket,id=system,fd={SYSTEM_FD}"),
        *("-device", f"vhost-user-fs-{bus},chardev=system,tag=system,queue-size=512"),
    ]
    if microvm:
        # vhost-user devices need the modern (virtio 1) transport.
        argv += ["-global", "virtio-mmio.force-legacy=false"]
    if options.shares:
        argv += ["-chardev", f"socket,id=shares,fd={SHARES_FD}"]
        argv += ["-device", f"vhost-user-fs-{bus},chardev=shares,tag=shares,queue-size=512"]
    for index in range(options.disks):
        argv += _disk(index, options, microvm=microvm)
    if options.serial:
        argv += ["-chardev", f"socket,id=console,fd={CONSOLE_FD}", "-serial", "chardev:console"]
    return tuple(argv)


def max_disks(machine: Machine) -> int:
    """Return how many disks a machine has room for."""
    return len(_DISK_SLOTS) if machine.kernel.machine == "microvm" else 16


def disk_endpoint(index: int) -> str:
    """Return the name of a disk's endpoint."""
    return f"disk{index}"


def _disk(index: int, options: MachineOptions, *, microvm: bool) -> list[str]:
    # By path and not by descriptor: only so can QEMU connect again when the disk's process has died.
    path = f"{DISK_SOCKETS}/{index}"
    if options.qemu_version >= _RECONNECT_MS_SINCE:
        again = f"reconnect-ms={_RECONNECT_MS}"
    else:
        again = "reconnect=1"
    place = f",bus=virtio-mmio-bus.{_DISK_SLOTS[index]}" if microvm else "-pci"
    return [
        *("-chardev", f"socket,id=disk{index},path={path},{again}"),
        *(
            "-device",
            f"vhost-user-blk{place},chardev=disk{index},num-queues=1,queue-size={_DISK_QUEUE},config-wce=off",
        ),
    ]


def _machine_word(machine: Machine, options: MachineOptions) -> str:
    if machine.kernel.machine != "microvm":
        return "q35,memory-backend=memory,vmport=off,hpet=off,graphics=off,usb=off"
    # An emulated machine whose counter's frequency is not known needs the old timer and interrupt chips to measure it.
    legacy = "on" if machine.accelerator == Accelerator.TCG and not machine.tsc_khz else "off"
    serial = "on" if options.serial else "off"
    return (
        f"microvm,acpi=off,pit={legacy},pic={legacy},rtc=on,isa-serial={serial},"
        "auto-kernel-cmdline=off,memory-backend=memory"
    )


def _accelerator(machine: Machine) -> tuple[str, ...]:
    if machine.accelerator == Accelerator.KVM:
        return ("-accel", "kvm", "-cpu", machine.cpu)
    thread = "multi" if machine.cpus > 1 else "single"
    return ("-accel", f"tcg,thread={thread}", "-cpu", machine.cpu)


def build_kernel_command_line(machine: Machine, options: MachineOptions) -> str:
    """Return the guest kernel's command line for this machine and accelerator (guest/cmdline.md gives the reasons)."""
    words = ["panic=-1", "reboot=t"]
    tcg = machine.accelerator == Accelerator.TCG
    if tcg:
        # A file server writes guest memory without QEMU's knowing: a page that held code and is filled with other
        # code would go on running as QEMU has translated it. Cleared by the guest's CPU when it is taken, it has no
        # translation left.
        words += ["init_on_alloc=1"]
    if machine.kernel.machine == "microvm":
        words += ["rcupdate.rcu_expedited=1", "swiotlb=noforce", *_slots(options)]
        if tcg:
            words += ["tsc=reliable", "lapic_timer_hz=1000000000", "keep_initmem", "noreplace-smp"]
            khz = machine.tsc_khz
            words += [f"tsc_early_khz={khz}", f"lpj={khz * 10}"] if khz else ["no_timer_check"]
        if options.boot_log:
            words += ["console=ttyS0", "earlyprintk=ttyS0", "8250.nr_uarts=1", "ignore_loglevel"]
        elif options.serial:
            # No driver looks for the port; only what the kernel says in distress goes there.
            words += ["quiet", "earlyprintk=ttyS0,keep"]
    else:
        words += ["console=ttyS0", "ignore_loglevel" if options.boot_log else "quiet"]
        if tcg:
            words += ["mitigations=off", "tsc=reliable", "no_timer_check"]
    return " ".join(words)


def _slots(options: MachineOptions) -> list[str]:
    """Name the transports in use: QEMU plugs devices into the highest free slot first."""
    used = 3 if options.shares else 2
    slots = (*range(7, 7 - used, -1), *_DISK_SLOTS[: options.disks])
    return [f"virtio_mmio.device=512@{_SLOT_BASE + slot * 512:#x}:{5 + slot}" for slot in slots]
