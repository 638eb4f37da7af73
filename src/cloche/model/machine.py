"""Words for machines and what isolates them (layer 1, pure)."""

from __future__ import annotations

from cloche.record import Record

#: Below this the guest kernel with its agent does not boot reliably.
MIN_MEMORY_MIB = 64
DEFAULT_MEMORY_MIB = 1024
MAX_CPUS = 64

#: An ability of a kernel, and the parameter that turns it on: the loopback device comes up when somebody makes a socket
#: or looks at the network (guest/patches).
LO_ON_DEMAND = "lo_on_demand"
#: A kernel's ability to find a disk in a drive that was empty when its driver was bound (guest/patches/0011).
EMPTY_DRIVE = "empty_drive"


class Isolation:
    """What stands between a program and the host, strongest first (DESIGN D7)."""

    HARDWARE_VM = "hardware-vm"
    EMULATED_VM = "emulated-vm"
    NAMESPACES = "namespaces"


class Accelerator:
    """What runs the guest's instructions."""

    KVM = "kvm"
    TCG = "tcg"


class Devices:
    """Where a machine's devices are (``--devices``).

    PROCESS: Each in a process of its own, with a jail that holds nothing but what it needs.
    BUNDLED: All in one process, outside of the VMM.
    VMM: In the VMM itself.
    """

    PROCESS = "process"
    BUNDLED = "bundled"
    VMM = "vmm"


#: What is given up where devices are not apart.
NOT_APART = {
    Devices.BUNDLED: "all devices are in one process: a hole in one of them is a hole in all",
    Devices.VMM: "the devices are in the VMM: a hole in one of them is a hole in all, and in the machine's monitor",
}


class Kernel(Record):
    """A guest kernel that can be booted.

    Attributes:
        ident: The name users give to ``--kernel``.
        path: The image (ELF vmlinux or bzImage).
        initrd: The initramfs with the agent, made for this kernel.
        kind: ``built``, ``fetched`` or ``host``.
        machine: ``microvm`` when virtio-mmio and its command line are built in, else ``q35``.
        abilities: What it was taught beyond Linux of its version (:data:`LO_ON_DEMAND`, :data:`EMPTY_DRIVE`).
    """

    ident: str
    path: str
    initrd: str
    kind: str
    machine: str
    abilities: tuple[str, ...] = ()


class Machine(Record):
    """The computer a domain gets.

    Attributes:
        memory_mib: A ceiling, not a reservation, in MiB.
        cpus: Number of virtual CPUs.
        cpu: The CPU model in QEMU's words.
        tsc_khz: The frequency of the counter an emulated guest reads; 0 lets its kernel measure it.
    """

    memory_mib: int
    cpus: int
    accelerator: str
    kernel: Kernel
    cpu: str
    tsc_khz: int = 0
