"""Where a machine's devices sit, and what one of them adds to the plan (layer 4, pure)."""

from __future__ import annotations

import os

from cloche.errors import UsageError
from cloche.model.jail import Bind, BindFlag
from cloche.model.plan import RUN_DIRECTORY, socket_name
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from cloche.model.facts import HostFacts
    from cloche.model.jail import RootOp
    from cloche.model.plan import Descriptor, Endpoint, OpenFile, ProcessPlan

#: QEMU's microvm has eight virtio-mmio transports, with interrupts 5 to 12 (hw/i386/microvm.c). Number 3 shares its
#: interrupt with the clock and comes last.
_SLOTS = (7, 6, 5, 4, 2, 1, 0, 3)
_SLOT_BASE, _SLOT_SIZE, _SLOT_IRQ = 0xFEB00000, 512, 5
#: How many devices there is room for on a microvm.
TRANSPORTS = len(_SLOTS)
#: How many of a machine's devices, in this order, a template has: control port, system tree, balloon.
IN_TEMPLATE = 3
#: On PCI there is room for more than anybody needs; this keeps a plan readable.
_PCI_DEVICES = 19

#: Where the VMM's jail shows the sockets to which it connects again when a device process has died.
RECONNECT_DIRECTORY = "/run/devices"


#: How long QEMU waits before it connects to a process again, in milliseconds (whole seconds where it knows no others).
_RECONNECT_MS = 50
_RECONNECT_MS_SINCE = (9, 2)


class DeviceParts(Record):
    """What one device adds to a machine's plan.

    Attributes:
        argv: QEMU's words for it.
        endpoints: The sockets between its process and QEMU.
        processes: Its process, none for a device inside the VMM.
        descriptors: What QEMU receives for it.
        root: What QEMU's jail shows for it.
        reconnects: Whether QEMU connects to it, again when it has died; QEMU needs another filter then.
        inside: Whether QEMU does the device's work itself; it needs more calls then, and ``files`` and ``caps``.
        files: What QEMU has open for it.
        caps: The capabilities QEMU needs for it, one bit each.
        as_owner: Whether QEMU must run under its owner's id for it, root's too.
        notices: What the user should be told about it.
    """

    argv: tuple[str, ...]
    endpoints: tuple[Endpoint, ...] = ()
    processes: tuple[ProcessPlan, ...] = ()
    descriptors: tuple[Descriptor, ...] = ()
    root: tuple[RootOp, ...] = ()
    reconnects: bool = False
    inside: bool = False
    files: tuple[OpenFile, ...] = ()
    caps: int = 0
    as_owner: bool = False
    notices: tuple[str, ...] = ()


class Board:
    """Gives each device of one machine its place.

    Attributes:
        microvm: Whether devices sit on virtio-mmio transports, else on PCI.
        taken: The transports in use, in the order in which they were given away, which is also the order in which the
            guest's kernel finds them.
    """

    def __init__(self, *, microvm: bool) -> None:
        self.microvm = microvm
        self.taken: tuple[int, ...] = ()
        self._devices = 0

    @property
    def left(self) -> int:
        """How many more devices there is room for."""
        return (TRANSPORTS if self.microvm else _PCI_DEVICES) - self._devices

    def place(self, model: str, *, suffix: str = "-device") -> str:
        """Return QEMU's word for a device of this model in the next free place.

        Args:
            model: The device's name on no bus in particular.
            suffix: What QEMU adds to it on virtio-mmio; for some models nothing.

        Raises:
            UsageError: There is none left.
        """
        if not self.left:
            raise UsageError(
                f"the machine has room for {self._devices} devices and no more",
                hint="Give it fewer disks or networks.",
            )
        slot = _SLOTS[self._devices] if self.microvm else -1
        self._devices += 1
        if not self.microvm:
            return f"{model}-pci"
        self.taken = (*self.taken, slot)
        return f"{model}{suffix},bus=virtio-mmio-bus.{slot}"


def reconnecting_socket(endpoint: str, facts: HostFacts) -> str:
    """Return QEMU's words for a socket of a device's process, to which it connects again when that has died.

    It is named by its path and not by a descriptor: only so can QEMU connect again.
    """
    path = f"{RECONNECT_DIRECTORY}/{endpoint}"
    again = f"reconnect-ms={_RECONNECT_MS}"
    if facts.tools.qemu_version < _RECONNECT_MS_SINCE:
        again = "reconnect=1"
    return f"socket,id={endpoint},path={path},{again}"


def reconnect_bind(endpoint: str) -> Bind:
    """Return what QEMU's jail shows of a LISTEN endpoint, so that QEMU can connect to it again."""
    source = RUN_DIRECTORY + b"/" + os.fsencode(socket_name(endpoint))
    return Bind(source, f"{RECONNECT_DIRECTORY}/{endpoint}".encode(), BindFlag.NOSUID | BindFlag.NODEV)


def transport_parameters(slots: tuple[int, ...]) -> list[str]:
    """Return the kernel parameters that name these transports (Documentation/admin-guide/kernel-parameters.txt)."""
    return [
        f"virtio_mmio.device={_SLOT_SIZE}@{_SLOT_BASE + slot * _SLOT_SIZE:#x}:{_SLOT_IRQ + slot}"
        for slot in slots
    ]


def numbered_parameters() -> list[str]:
    """Return the kernel parameters that name every transport, with the number by which it is bound later.

    They are in the order in which devices get them: the agent looks for its port at the first device.
    """
    named = zip(transport_parameters(_SLOTS), _SLOTS, strict=True)
    return [f"{parameter}:{slot}" for parameter, slot in named]


def platform_device(slot: int) -> bytes:
    """Return the guest kernel's name for a transport."""
    return b"virtio-mmio.%d" % slot
