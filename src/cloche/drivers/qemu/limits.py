"""How much memory and how many threads a machine's processes may have (layer 4, pure).

Where the caller may make no cgroups there are no such limits, and nothing is said of any. A page of the guest's memory
counts for whoever touches it first, which may be a device that writes into a new buffer; so each is allowed all of it,
and something of its own. What the kernel keeps of files counts too, and is given back before the limit kills.
"""

from __future__ import annotations

from cloche.model.jail import Limits
from cloche.model.machine import Accelerator
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.model.facts import HostFacts
    from cloche.model.machine import Machine
    from cloche.model.plan import ProcessPlan

_MIB = 1 << 20
#: Of a device's own, in MiB: some ten are usual. A file server keeps names and inodes, and so does the kernel for it.
_DEVICE_MIB, _FILES_MIB = 64, 256
#: QEMU's own; translated code takes up to 1024 more (accel/tcg/region.c).
_VMM_MIB, _TRANSLATED_MIB = 384, 1024
#: A device has one thread, those that are together one each; QEMU has one for each CPU and a pool of up to 64.
_DEVICE_THREADS, _TOGETHER_THREADS, _VMM_THREADS = 4, 32, 96


def cgroup_for(facts: HostFacts, insecure: tuple[str, ...] = ()) -> str:
    """Return below which cgroup of the host a domain's are; empty for none."""
    return "" if "cgroups" in insecure else facts.cgroup


def limit(process: ProcessPlan, machine: Machine) -> ProcessPlan:
    """Return the process with its limits."""
    own, threads = _DEVICE_MIB, _DEVICE_THREADS
    if process.name == "vmm":
        own = _VMM_MIB + (_TRANSLATED_MIB if machine.accelerator == Accelerator.TCG else 0)
        threads = _VMM_THREADS + machine.cpus
    elif process.name == "devices":
        own, threads = _FILES_MIB, _TOGETHER_THREADS
    elif process.name.startswith("fs-"):
        own = _FILES_MIB
    return process._replace(limits=Limits((machine.memory_mib + own) * _MIB, threads))
