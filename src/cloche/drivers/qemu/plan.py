"""The QEMU driver's plan (layer 4, pure): processes, sockets, jails and the guest's set-up."""

from __future__ import annotations

from cloche.drivers.qemu.board import Board, platform_device
from cloche.drivers.qemu.command import HUGE_PAGE, MEMORY_FILE, STATE_FD, Beginning, plan_control
from cloche.drivers.qemu.files import HOSTNAME, SOCKET_FDS, build_trees, plan_file_server, plan_sharing
from cloche.drivers.qemu.jails import check_insecure, give_up
from cloche.drivers.qemu.limits import cgroup_for, limit
from cloche.drivers.qemu.machine import choose_machine
from cloche.drivers.qemu.vmm import plan_vmm
from cloche.errors import HostError, UsageError
from cloche.model.guest import BindDevice
from cloche.model.machine import LO_ON_DEMAND, NOT_APART, Accelerator, Devices, Isolation
from cloche.model.plan import LaunchPlan
from cloche.model.request import RootKind
from cloche.plan.guest import FRESH, build_command, build_machine_steps, resolve_user, shown_trees
from cloche.plan.stage import late_links
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.drivers.qemu.board import DeviceParts
    from cloche.model.facts import HostFacts, User
    from cloche.model.guest import Step
    from cloche.model.machine import Kernel, Machine
    from cloche.model.plan import Template
    from cloche.model.request import RunRequest

#: The oldest QEMU with everything a cold start needs (DESIGN section 7).
MINIMUM_VERSION = (7, 2)

#: Until the agent answers, in seconds. Emulated machines on busy hosts are slow; a dead one is noticed otherwise.
_BOOT_TIMEOUT_S = {Accelerator.KVM: 20.0, Accelerator.TCG: 60.0}

#: Until the agent of a machine that goes on from a template answers; after that it is booted, and the time is lost.
_RESTORE_TIMEOUT_S = 20.0

#: Open files a file server starts with (`MIN_FDS` of crates/fs), and what a login usually allows.
_LEAST_FILES, _USUAL_FILES = 128, 1024


def plan_launch(
    request: RunRequest, facts: HostFacts, kernel: Kernel | None, template: Template | None = None
) -> LaunchPlan:
    """Compute the launch of a machine for ``request``, one that goes on from ``template`` if there is one. Pure.

    Raises:
        UsageError: What no machine can have, or no guest.
        ShareError: A share or copy that cannot be where it is asked to be.
        HostError: No kernel, no filters, no ids for root's processes, or KVM was asked for and does not work.
    """
    if kernel is None:
        raise HostError(
            "the qemu driver needs a guest kernel", hint="Run `cloche kernel build` or `cloche kernel fetch`."
        )
    least = _LEAST_FILES * (2 if request.devices == Devices.BUNDLED else 1)
    if facts.nofile_hard < least:
        raise HostError(
            f"at most {facts.nofile_hard} open files are allowed here, and cloche needs {least}",
            hint=f"Raise the limit where it was lowered: `ulimit -n {_USUAL_FILES}`.",
        )
    machine, notices = choose_machine(request, facts, kernel)
    check_insecure(request.insecure, facts)
    person = resolve_user(request, facts.user)
    if request.root is not None:
        from cloche.plan.roots import check_root

        check_root(request)
    if request.shares or request.includes or request.mounts:
        from cloche.plan.places import check_places

        check_places(request.shares, request.includes, request.mounts)
    board = Board(microvm=kernel.machine == "microvm")
    shared = bool(request.shares or request.includes or request.share_later)
    if template:
        state = template.state._replace(number=STATE_FD)
        template = template._replace(state=state, target=MEMORY_FILE.encode())
    control = plan_control(board)
    balloon = template is not None and template.balloon
    devices = (control, *_plan_devices(board, request, facts, balloon=balloon))
    vmm = plan_vmm(
        facts,
        machine,
        board,
        devices,
        boot_log=request.boot_log,
        beginning=Beginning.RESTORE if template else Beginning.BOOT,
        files=(template.state,) if template else (),
    )
    if request.disks and request.devices == Devices.VMM and not any(s.writable for s in request.shares):
        from cloche.drivers.qemu.disk import limit_files

        # The guest's memory is a file, too.
        limited = limit_files(vmm.jail, request.disks, least=(machine.memory_mib << 20) + HUGE_PAGE)
        vmm = vmm._replace(jail=limited)
    # QEMU takes longest to come up, and its sockets are there before whoever answers on them.
    processes = [vmm, *(process for device in devices for process in device.processes)]
    cgroup = cgroup_for(facts, request.insecure)
    if cgroup:
        processes = [limit(process, machine) for process in processes]
    setup = _set_up(request, facts, person, machine=machine, kernel=kernel, board=board, template=template)
    layer = vsock = None
    if request.vsock:
        from cloche.drivers.qemu.vsock import sockets_of

        vsock = sockets_of(request)
    if request.layer is not None:
        from cloche.plan.layers import check_layer, plan_layer

        check_layer(request)
        setup, layer = plan_layer(request.layer, setup)
    return LaunchPlan(
        driver="qemu",
        isolation=Isolation.HARDWARE_VM if machine.accelerator == Accelerator.KVM else Isolation.EMULATED_VM,
        machine=machine,
        endpoints=tuple(endpoint for device in devices for endpoint in device.endpoints),
        processes=tuple(give_up(process, request.insecure) for process in processes),
        control="control",
        console="console",
        monitor="monitor",
        setup=setup,
        command=build_command(request, facts, person, shown_trees(request)),
        writable_shares=any(share.writable for share in request.shares)
        # A profile's is closed in its own way.
        or any(disk.writable for disk in request.disks[request.layer is not None :]),
        boot_timeout_s=_RESTORE_TIMEOUT_S
        if template
        else request.boot_timeout_s or _BOOT_TIMEOUT_S[machine.accelerator],
        timeout_s=request.timeout_s,
        sharing=plan_sharing(request, facts, served=shared and request.devices == Devices.PROCESS),
        notices=(*notices, *(line for device in devices for line in device.notices)),
        devices=request.devices,
        insecure=request.insecure,
        ids=facts.ids,
        memory=MEMORY_FILE.encode(),
        cgroup=cgroup,
        template=template,
        request=request,
        slots=board.taken,
        balloon=balloon,
        layer=layer,
        vsock=vsock,
    )


def _set_up(
    request: RunRequest,
    facts: HostFacts,
    person: User,
    *,
    machine: Machine,
    kernel: Kernel,
    board: Board,
    template: Template | None,
) -> tuple[Step, ...]:
    """Return what the agent does before the program."""
    if template and template.devices:
        return _going_on(request, template, board)
    bound = template.bound if template else len(board.taken)
    return build_machine_steps(
        request,
        facts.user,
        person,
        facts.skeleton,
        hostname=HOSTNAME,
        loopback=LO_ON_DEMAND not in kernel.abilities,
        # An emulated CPU's RDRAND is the host's getrandom (target/i386/tcg/int_helper.c of QEMU), and the kernel
        # takes it at its first breath. What a real CPU has is not known.
        # A template has taken it before it was saved, and all its clones have the same.
        entropy=machine.accelerator != Accelerator.TCG or template is not None,
        restored=template is not None,
        links=late_links(facts),
        # Control port and system tree have their drivers, the others came after the boot.
        devices=tuple(platform_device(slot) for slot in board.taken[bound:]),
        has_places=request.layer is not None and template is not None and template.drives > 0,
    )


def _going_on(request: RunRequest, template: Template, board: Board) -> tuple[Step, ...]:
    """Return the steps for a guest that was saved while it ran, and may have got disks and a card since."""
    added = board.taken[template.devices :]
    if not added:
        return FRESH
    steps = [*FRESH, *(BindDevice(platform_device(slot)) for slot in added)]
    behind_card = len(request.disks) - _disks_before_card(request)
    is_card_new = request.network is not None and len(added) > behind_card
    known = len(request.disks) - len(added) + is_card_new
    if known < len(request.disks):
        from cloche.plan.disks import build_disk_steps

        steps += build_disk_steps(request.disks[known:], known)
    if is_card_new:
        from cloche.plan.networks import build_network_steps

        steps += build_network_steps(request.network)
    return tuple(steps)


def _disks_before_card(request: RunRequest) -> int:
    card = request.network
    return len(request.disks) if card is None or card.after_disks is None else card.after_disks


def _plan_devices(
    board: Board, request: RunRequest, facts: HostFacts, *, balloon: bool
) -> tuple[DeviceParts, ...]:
    trees = build_trees(request, facts, HOSTNAME)
    if request.devices in NOT_APART:
        given_up = (
            ("--share-later", request.share_later),
            ("--net", request.network is not None),
            ("--vsock", bool(request.vsock)),
        )
        for option, given in given_up:
            if given:
                raise UsageError(
                    f"--devices={request.devices} cannot do {option}", hint="Leave out --devices."
                )
    if request.devices == Devices.VMM:
        from cloche.drivers.qemu.inside import plan_inside

        return plan_inside(board, trees, request, facts)
    if request.devices == Devices.BUNDLED:
        from cloche.drivers.qemu.bundle import plan_bundle

        return plan_bundle(board, trees, request, facts)
    if request.devices != Devices.PROCESS:
        raise UsageError(
            f"there is no arrangement {request.devices!r} of devices",
            hint=f"There are {Devices.PROCESS}, {Devices.BUNDLED} and {Devices.VMM}.",
        )
    # The system tree comes first, where it is not in an image; no machine without it has a balloon.
    in_template = 0 if request.root is not None and request.root.kind == RootKind.IMAGE else 1
    servers = list(zip(trees, SOCKET_FDS, strict=False))
    devices = [plan_file_server(board, tree, fd, facts) for tree, fd in servers[:in_template]]
    if balloon:
        from cloche.drivers.qemu.balloon import plan_balloon

        # Its driver takes an emulated guest 12 ms at a boot, and none where a template has it.
        devices.append(plan_balloon(board))
    first, before = 0, _disks_before_card(request)
    if before:
        from cloche.drivers.qemu.disk import count_drives, plan_disks

        # A template may have drives for the first, in these places.
        first = min(count_drives(request), before)
        devices += plan_disks(board, request.disks[:first], facts)
    devices += [plan_file_server(board, tree, fd, facts) for tree, fd in servers[in_template:]]
    if first < before:
        from cloche.drivers.qemu.disk import plan_disks

        devices += plan_disks(board, request.disks[:before], facts, first)
    if request.hwrng:
        from cloche.drivers.qemu.rng import plan_rng

        devices.append(plan_rng(board, facts))
    if request.vsock:
        from cloche.drivers.qemu.vsock import plan_vsock

        devices.append(plan_vsock(board, request, facts))
    if request.network:
        from cloche.drivers.qemu.network import plan_network

        devices.append(plan_network(board, request.network, facts))
    if before < len(request.disks):
        from cloche.drivers.qemu.disk import plan_disks

        devices += plan_disks(board, request.disks, facts, before)
    return tuple(devices)
