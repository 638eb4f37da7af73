"""QEMU's command line and the guest kernel's (layer 4, pure)."""

from __future__ import annotations

from cloche.drivers.qemu.board import DeviceParts, numbered_parameters, transport_parameters
from cloche.model.machine import LO_ON_DEMAND, Accelerator
from cloche.model.plan import Descriptor, Endpoint, EndpointKind
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.drivers.qemu.board import Board
    from cloche.model.machine import Machine

#: Descriptor numbers inside the VMM.
CONTROL_FD, MONITOR_FD, CONSOLE_FD, STATE_FD = 10, 13, 14, 15

#: Where the VMM's jail shows the kernel and its initramfs.
KERNEL_PATH, INITRD_PATH = "/boot/kernel", "/boot/initrd"

#: Where the VMM's jail has room for the guest's memory, the file that is this, and a huge page of x86-64 in bytes.
MEMORY_PATH = "/memory"
MEMORY_FILE = f"{MEMORY_PATH}/ram"
HUGE_PAGE = 2 << 20


class Beginning:
    """How a machine comes to run: by a boot, by a boot to be saved as a template, or from a template."""

    BOOT = "boot"
    SAVE = "save"
    RESTORE = "restore"


def build_vmm_argv(
    qemu: str,
    machine: Machine,
    board: Board,
    devices: tuple[DeviceParts, ...],
    *,
    boot_log: bool,
    beginning: str = Beginning.BOOT,
) -> tuple[str, ...]:
    """Return QEMU's arguments: a machine with these devices, which have their places on ``board``, and nothing else."""
    memory = f"{machine.memory_mib}M"
    argv = [
        qemu,
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        *("-display", "none"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-machine", _machine_word(machine)),
        *_accelerator(machine),
        *("-smp", str(machine.cpus)),
        *("-m", memory),
        # vhost-user backends map the guest's memory, so it must be shared and have a descriptor. A memfd would be in
        # small pages on most hosts; mappings of huge ones must begin at a multiple of their size.
        *(
            "-object",
            f"memory-backend-file,id=memory,size={memory},mem-path={MEMORY_FILE},share=on,align={HUGE_PAGE >> 20}M",
        ),
    ]
    if beginning == Beginning.RESTORE:
        # What is in its memory brings the kernel along.
        argv += ["-incoming", "defer"]
    else:
        line = build_kernel_command_line(
            machine, None if beginning == Beginning.SAVE else board.taken, boot_log=boot_log
        )
        argv += ["-kernel", KERNEL_PATH, "-initrd", INITRD_PATH, "-append", line]
    if beginning != Beginning.BOOT:
        argv += ["-add-fd", f"fd={STATE_FD},set=1"]
    if board.microvm:
        # vhost-user devices need the modern (virtio 1) transport.
        argv += ["-global", "virtio-mmio.force-legacy=false"]
    for device in devices:
        argv += device.argv
    return tuple(argv)


def plan_control(board: Board) -> DeviceParts:
    """Return what stays in the VMM: its monitor, the guest's serial port, and the port on which the agent speaks."""
    return DeviceParts(
        argv=(
            *("-chardev", f"socket,id=monitor,fd={MONITOR_FD}"),
            *("-mon", "chardev=monitor,mode=control"),
            *("-chardev", f"socket,id=console,fd={CONSOLE_FD}", "-serial", "chardev:console"),
            *("-chardev", f"socket,id=control,fd={CONTROL_FD},server=on,wait=off"),
            *("-device", f"{board.place('virtio-serial')},id=serial0,max_ports=2"),
            *("-device", "virtserialport,bus=serial0.0,id=port,nr=1,chardev=control,name=cloche.0"),
        ),
        endpoints=(
            Endpoint("control", EndpointKind.LISTEN),
            Endpoint("monitor", EndpointKind.PAIR),
            Endpoint("console", EndpointKind.PAIR),
        ),
        descriptors=(
            Descriptor("control", "listen", CONTROL_FD),
            Descriptor("monitor", "there", MONITOR_FD),
            Descriptor("console", "there", CONSOLE_FD),
        ),
    )


def _machine_word(machine: Machine) -> str:
    if machine.kernel.machine != "microvm":
        return "q35,memory-backend=memory,vmport=off,hpet=off,graphics=off,usb=off"
    # An emulated machine whose counter's frequency is not known needs the old timer and interrupt chips to measure it.
    legacy = "on" if machine.accelerator == Accelerator.TCG and not machine.tsc_khz else "off"
    return (
        f"microvm,acpi=off,pit={legacy},pic={legacy},rtc=on,isa-serial=on,"
        "auto-kernel-cmdline=off,memory-backend=memory"
    )


def _accelerator(machine: Machine) -> tuple[str, ...]:
    if machine.accelerator == Accelerator.KVM:
        return ("-accel", "kvm", "-cpu", machine.cpu)
    thread = "multi" if machine.cpus > 1 else "single"
    return ("-accel", f"tcg,thread={thread}", "-cpu", machine.cpu)


def build_kernel_command_line(machine: Machine, slots: tuple[int, ...] | None, *, boot_log: bool) -> str:
    """Return the guest kernel's command line (guest/cmdline.md gives the reasons).

    Args:
        machine: What it runs on.
        slots: The virtio-mmio transports in use; the first disk is in the first of them that holds one. None names
            all of them, for a machine that is saved before it has its devices.
        boot_log: Whether it reports every step of its boot.
    """
    words = ["panic=-1", "reboot=t"]
    tcg = machine.accelerator == Accelerator.TCG
    if tcg:
        # A file server writes guest memory without QEMU's knowing: a page that held code and is filled with other
        # code would go on running as QEMU has translated it. Cleared by the guest's CPU when it is taken, it has no
        # translation left.
        words += ["init_on_alloc=1"]
    if machine.kernel.machine == "microvm":
        words += ["rcupdate.rcu_expedited=1", "swiotlb=noforce", "dummy.numdummies=0"]
        words += numbered_parameters() if slots is None else transport_parameters(slots)
        words += [ability for ability in machine.kernel.abilities if ability == LO_ON_DEMAND]
        if tcg:
            words += ["tsc=reliable", "lapic_timer_hz=1000000000", "keep_initmem", "noreplace-smp"]
            khz = machine.tsc_khz
            words += [f"tsc_early_khz={khz}", f"lpj={khz * 10}"] if khz else ["no_timer_check"]
        if boot_log:
            words += ["console=ttyS0", "earlyprintk=ttyS0", "8250.nr_uarts=1", "ignore_loglevel"]
        else:
            # No driver looks for the port; only what the kernel says in distress goes there.
            words += ["quiet", "earlyprintk=ttyS0,keep"]
    else:
        words += ["console=ttyS0", "ignore_loglevel" if boot_log else "quiet"]
        if tcg:
            words += ["mitigations=off", "tsc=reliable", "no_timer_check"]
    return " ".join(words)
