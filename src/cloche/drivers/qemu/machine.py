"""Which computer a request gets (layer 4, pure)."""

from __future__ import annotations

from cloche.errors import HostError, UsageError
from cloche.model.machine import DEFAULT_MEMORY_MIB, MAX_CPUS, MIN_MEMORY_MIB, Accelerator, Machine
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.model.facts import HostFacts
    from cloche.model.machine import Kernel
    from cloche.model.request import RunRequest


def choose_cpu(accelerator: str, facts: HostFacts) -> str:
    """Return the CPU model: the host's under KVM, else all that QEMU can emulate without what it emulates badly."""
    if accelerator == Accelerator.KVM:
        return "host"
    # Kernels that are told that `rep movsb` is fast copy with it, and QEMU carries it out byte by byte.
    slow = ["erms", "fsrm"]
    if facts.tools.qemu_version >= (10, 0):
        slow += ["fsrs", "fzrm"]
    return ",".join(["max", *(f"-{flag}" for flag in slow)])


def choose_machine(request: RunRequest, facts: HostFacts, kernel: Kernel) -> tuple[Machine, tuple[str, ...]]:
    """Return the machine and what the user should be told about it.

    Raises:
        UsageError: Memory or CPUs that no machine could have here.
        HostError: KVM was asked for and does not work.
    """
    memory = min(DEFAULT_MEMORY_MIB, facts.memory_mib) if request.memory_mib is None else request.memory_mib
    if memory < MIN_MEMORY_MIB:
        raise UsageError(
            f"{memory} MiB of memory are too little to boot a machine",
            hint=f"Give at least --memory {MIN_MEMORY_MIB}M.",
        )
    if memory > facts.memory_mib:
        raise UsageError(
            f"{memory} MiB of memory are more than this host has ({facts.memory_mib} MiB)",
            hint="Give less with --memory.",
        )
    cpus = 1 if request.cpus is None else request.cpus
    if not 1 <= cpus <= MAX_CPUS:
        raise UsageError(f"a machine cannot have {cpus} CPUs", hint=f"Give --cpus between 1 and {MAX_CPUS}.")
    notices: list[str] = []
    accelerator = request.accelerator
    if accelerator not in (None, Accelerator.KVM, Accelerator.TCG):
        raise UsageError(f"there is no accelerator {accelerator!r}", hint="There are kvm and tcg.")
    if accelerator == Accelerator.KVM and facts.kvm is False:
        raise HostError(
            "KVM does not work here",
            hint="`cloche doctor` tries it again and says why; leave out --accel to emulate.",
        )
    if accelerator is None:
        accelerator = Accelerator.KVM if facts.kvm else Accelerator.TCG
        if facts.kvm is None:
            notices.append(
                "KVM was not tried yet on this host kernel, so this machine is emulated; `cloche doctor` tries it."
            )
        elif not facts.kvm:
            notices.append("KVM does not work here, so this machine is emulated; `cloche doctor` says why.")
    if kernel.machine != "microvm":
        notices.append(
            f"the {kernel.kind} kernel {kernel.ident} starts slowly (no template); "
            "`cloche kernel build` makes a fast one."
        )
    return Machine(memory, cpus, accelerator, kernel, choose_cpu(accelerator, facts), facts.tsc_khz), tuple(
        notices
    )
