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


class MachineOptions(Record):
    """What a machine's command line depends on besides ``Machine``.

    Attributes:
        shares: Whether there is a second file server.
        serial: Whether the guest has a serial port (on ``CONSOLE_FD``).
        boot_log: Whether the kernel reports every step of its boot there.
    """

    shares: bool
    serial: bool
    boot_log: bool


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
        # vhost-user backends map the guest's memory, so it must be shared and have a descriptor.
        *("-object", f"memory-backend-memfd,id=memory,size={memory},share=on"),
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
    if options.serial:
        argv += ["-chardev", f"socket,id=console,fd={CONSOLE_FD}", "-serial", "chardev:console"]
    return tuple(argv)


def _machine_word(machine: Machine, options: MachineOptions) -> str:
    if machine.kernel.machine != "microvm":
        return "q35,memory-backend=memory,vmport=off,hpet=off,graphics=off,usb=off"
    # Without KVM there is no paravirtual clock: the timer needs the old interrupt and timer chips.
    legacy = "on" if machine.accelerator == Accelerator.TCG else "off"
    serial = "on" if options.serial else "off"
    return (
        f"microvm,acpi=off,pit={legacy},pic={legacy},rtc=on,isa-serial={serial},"
        "auto-kernel-cmdline=on,memory-backend=memory"
    )


def _accelerator(machine: Machine) -> tuple[str, ...]:
    if machine.accelerator == Accelerator.KVM:
        return ("-accel", "kvm", "-cpu", "host")
    thread = "multi" if machine.cpus > 1 else "single"
    return ("-accel", f"tcg,thread={thread}", "-cpu", "max")


def build_kernel_command_line(machine: Machine, options: MachineOptions) -> str:
    """Return the guest kernel's command line for this machine and accelerator."""
    words = [
        "panic=-1",
        "reboot=t",
        "random.trust_cpu=on",
        "mitigations=off" if machine.accelerator == Accelerator.TCG else "",
        "quiet",
    ]
    if machine.accelerator == Accelerator.TCG:
        words += ["tsc=reliable", "no_timer_check"]
    if options.serial:
        words += ["console=ttyS0"]
    if options.boot_log:
        words += ["loglevel=7", "earlyprintk=serial,ttyS0"]
    return " ".join(word for word in words if word)
