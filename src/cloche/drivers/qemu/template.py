"""Machines that go on from a template (layer 4, pure): which can, and the one that is saved.

A template has the control port and the system tree, which is mounted under a fresh writable layer with the caller's
home in it. One for runs with disks also has drives, which are empty, and with a profile the places where its disk is
mounted. The other devices of a run are added when it is restored, in the transports that were empty (docs/devices.md).
"""

from __future__ import annotations

from cloche.drivers.qemu.abilities import ability
from cloche.drivers.qemu.balloon import plan_balloon
from cloche.drivers.qemu.board import IN_TEMPLATE, TRANSPORTS, Board
from cloche.drivers.qemu.command import MEMORY_FILE, STATE_FD, Beginning, plan_control
from cloche.drivers.qemu.files import HOSTNAME, SOCKET_FDS, build_trees, plan_file_server, plan_sharing
from cloche.drivers.qemu.limits import cgroup_for, limit
from cloche.drivers.qemu.machine import choose_machine
from cloche.drivers.qemu.vmm import plan_vmm
from cloche.model.guest import GuestCommand, Mkdir
from cloche.model.machine import EMPTY_DRIVE, Accelerator, Devices, Isolation
from cloche.model.plan import LaunchPlan, OpenFile
from cloche.plan.disks import BY_TAG
from cloche.plan.guest import build_first_steps, build_ready_steps
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.drivers.qemu.board import DeviceParts
    from cloche.model.facts import HostFacts
    from cloche.model.machine import Kernel
    from cloche.model.request import RunRequest

_MICROVM = "microvm"
#: Stands in a plan for the file that QEMU saves the devices to, which is made when the plan is carried out.
STATE_PLACEHOLDER = "/state"
#: What every run has and is saved with, and what some have besides.
_TREE, _DISK, _NETWORK, _NUMBERS = "vhost-user-fs", "vhost-user-blk", "virtio-net", "vhost-user-rng"
_SOCKETS = "vhost-user-vsock"
_BOOT_TIMEOUT_S = 120.0


def why_cold(request: RunRequest, facts: HostFacts, kernel: Kernel | None) -> str:
    """Return why a request that is not for a boot cannot go on from a template; empty if it can."""
    version = facts.tools.qemu_version
    if request.root is not None:
        return "a template has the host's tree, and --root has another one"
    if request.boot_log or request.boot_timeout_s is not None:
        return "--boot-log and --boot-timeout are about a boot"
    if kernel is None or kernel.machine != _MICROVM:
        return "this kernel finds no devices that come after its boot"
    accelerator = request.accelerator or (Accelerator.KVM if facts.kvm else Accelerator.TCG)
    if accelerator != Accelerator.TCG:
        return "nobody has tried it under KVM yet"
    if request.devices != Devices.PROCESS:
        return f"nobody has tried it with --devices={request.devices}"
    if facts.skeleton is None:
        return "what a home begins with (/etc/skel) is too much to be kept in a template"
    added = bool(request.shares or request.includes or request.share_later) + len(request.disks)
    if IN_TEMPLATE + added + (request.network is not None) > TRANSPORTS:
        return "so many devices have no room beside those of a template"
    reason = ability(_TREE, version).saved
    if reason:
        return f"{_TREE} with QEMU {version[0]}.{version[1]}: {reason}"
    kinds = (
        (_TREE, request.shares or request.includes or request.share_later),
        (_DISK, request.disks),
        (_NETWORK, request.network),
        (_NUMBERS, request.hwrng),
        (_SOCKETS, request.vsock),
    )
    for kind, wanted in kinds:
        if not wanted:
            continue
        reason = ability(kind, version).added_at_restore
        if reason:
            return f"{kind} with QEMU {version[0]}.{version[1]}: {reason}"
    return ""


def plan_template(request: RunRequest, facts: HostFacts, kernel: Kernel) -> LaunchPlan:
    """Compute the machine that is saved for requests like this one.

    Raises:
        UsageError: What no machine can have.
        HostError: The filter for QEMU was not built.
    """
    machine, notices = choose_machine(request, facts, kernel)
    board = Board(microvm=True)
    control = plan_control(board)
    system = plan_file_server(board, build_trees(request, facts, HOSTNAME)[0], SOCKET_FDS[0], facts)
    state = OpenFile(STATE_PLACEHOLDER, True, STATE_FD)
    drives: tuple[DeviceParts, ...] = ()
    steps = (
        *build_first_steps(facts.user, facts.skeleton, hostname=HOSTNAME, devices=request.devices),
        *build_ready_steps(facts.user),
        # Where disks are found by their tags: a directory in /dev is not made in a moment.
        Mkdir(BY_TAG),
    )
    balloon = plan_balloon(board)
    if request.disks and EMPTY_DRIVE in kernel.abilities:
        from cloche.drivers.qemu.disk import plan_drives

        drives = plan_drives(board, request, facts)
    if drives and request.layer is not None:
        from cloche.plan.layers import build_place_steps

        steps += build_place_steps(request.devices)
    devices = (control, system, balloon, *drives)
    vmm = plan_vmm(facts, machine, board, devices, boot_log=False, beginning=Beginning.SAVE, files=(state,))
    processes = [vmm, *(process for device in devices for process in device.processes)]
    cgroup = cgroup_for(facts)
    return LaunchPlan(
        driver="qemu",
        isolation=Isolation.EMULATED_VM,
        machine=machine,
        endpoints=tuple(endpoint for device in devices for endpoint in device.endpoints),
        processes=tuple(limit(process, machine) if cgroup else process for process in processes),
        control="control",
        console="console",
        monitor="monitor",
        setup=steps,
        command=GuestCommand((), (), b"/", 0, 0),
        writable_shares=False,
        boot_timeout_s=_BOOT_TIMEOUT_S,
        timeout_s=None,
        sharing=plan_sharing(request, facts, served=False),
        notices=notices,
        ids=facts.ids,
        memory=MEMORY_FILE.encode(),
        cgroup=cgroup,
        slots=board.taken,
    )
