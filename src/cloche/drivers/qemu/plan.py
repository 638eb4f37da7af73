"""The QEMU driver's plan (layer 4, pure): processes, sockets, jails and the guest's set-up."""

from __future__ import annotations

from cloche.drivers.qemu.board import Board
from cloche.drivers.qemu.command import plan_control
from cloche.drivers.qemu.files import plan_shares, plan_sharing, plan_system_tree
from cloche.drivers.qemu.jails import check_insecure, give_up
from cloche.drivers.qemu.machine import choose_machine
from cloche.drivers.qemu.vmm import plan_vmm
from cloche.errors import HostError
from cloche.model.machine import LO_ON_DEMAND, Accelerator, Isolation
from cloche.model.plan import LaunchPlan
from cloche.plan.guest import build_command, build_machine_steps, resolve_user, shown_trees
from cloche.plan.shares import check_places
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.model.facts import HostFacts
    from cloche.model.machine import Kernel
    from cloche.model.request import RunRequest

#: The oldest QEMU with everything a cold start needs (DESIGN section 7).
MINIMUM_VERSION = (7, 2)

#: Until the agent answers, in seconds. Emulated machines on busy hosts are slow; a dead one is noticed otherwise.
_BOOT_TIMEOUT_S = {Accelerator.KVM: 20.0, Accelerator.TCG: 60.0}

#: Open files a file server starts with (`MIN_FDS` of crates/fs), and what a login usually allows.
_LEAST_FILES, _USUAL_FILES = 128, 1024


def plan_launch(request: RunRequest, facts: HostFacts, kernel: Kernel | None) -> LaunchPlan:
    """Compute the launch of a machine for ``request``. Pure.

    Raises:
        UsageError: What no machine can have, or no guest.
        ShareError: A share or copy that cannot be where it is asked to be.
        HostError: No kernel, no filters, no ids for root's processes, or KVM was asked for and does not work.
    """
    if kernel is None:
        raise HostError(
            "the qemu driver needs a guest kernel", hint="Run `cloche kernel build` or `cloche kernel fetch`."
        )
    if facts.nofile_hard < _LEAST_FILES:
        raise HostError(
            f"at most {facts.nofile_hard} open files are allowed here, and cloche needs {_LEAST_FILES}",
            hint=f"Raise the limit where it was lowered: `ulimit -n {_USUAL_FILES}`.",
        )
    machine, notices = choose_machine(request, facts, kernel)
    check_insecure(request.insecure, facts)
    person = resolve_user(request, facts.user)
    ident = "cloche"
    check_places(request.shares, request.includes)
    board = Board(microvm=kernel.machine == "microvm")
    devices = [plan_control(board), plan_system_tree(board, facts, ident)]
    shared = bool(request.shares or request.includes or request.share_later)
    if shared:
        devices.append(plan_shares(board, request, facts))
    if request.disks:
        from cloche.drivers.qemu.disk import plan_disks

        devices += plan_disks(board, request.disks, facts)
    if request.network:
        from cloche.drivers.qemu.network import plan_network

        devices.append(plan_network(board, request.network, facts))
    vmm = plan_vmm(facts, machine, board, tuple(devices), boot_log=request.boot_log)
    processes = [process for device in devices for process in device.processes]
    return LaunchPlan(
        driver="qemu",
        isolation=Isolation.HARDWARE_VM if machine.accelerator == Accelerator.KVM else Isolation.EMULATED_VM,
        machine=machine,
        endpoints=tuple(endpoint for device in devices for endpoint in device.endpoints),
        processes=tuple(give_up(process, request.insecure) for process in (*processes, vmm)),
        control="control",
        console="console",
        monitor="monitor",
        setup=build_machine_steps(
            request,
            facts.user,
            person,
            facts.skeleton,
            hostname=ident,
            loopback=LO_ON_DEMAND not in kernel.abilities,
            # An emulated CPU's RDRAND is the host's getrandom (target/i386/tcg/int_helper.c of QEMU), and the kernel
            # takes it at its first breath. What a real CPU has is not known.
            entropy=machine.accelerator != Accelerator.TCG,
        ),
        command=build_command(request, facts, person, shown_trees(request.shares)),
        writable_shares=any(share.writable for share in request.shares)
        or any(disk.writable for disk in request.disks),
        boot_timeout_s=request.boot_timeout_s or _BOOT_TIMEOUT_S[machine.accelerator],
        timeout_s=request.timeout_s,
        sharing=plan_sharing(request, facts, served=shared),
        notices=notices,
        insecure=request.insecure,
        ids=facts.ids,
    )
