"""The QEMU driver's plan (layer 4, pure): processes, sockets, jails and the guest's set-up."""

from __future__ import annotations

import os

from cloche.drivers.qemu import command
from cloche.errors import HostError, UsageError
from cloche.model.jail import (
    AS_IS,
    INDISPENSABLE,
    INSECURE_PARTS,
    Bind,
    BindFlag,
    Dev,
    Dir,
    Jail,
    JailFlag,
    Namespace,
    Proc,
    Symlink,
    Tmpfs,
    TmpfsFlag,
)
from cloche.model.machine import DEFAULT_MEMORY_MIB, MAX_CPUS, MIN_MEMORY_MIB, Accelerator, Isolation, Machine
from cloche.model.plan import (
    RUN_DIRECTORY,
    Descriptor,
    Endpoint,
    EndpointKind,
    LaunchPlan,
    ProcessPlan,
    socket_name,
)
from cloche.plan.guest import build_command, build_machine_steps, resolve_user, shown_trees
from cloche.plan.shares import check_places
from cloche.plan.stage import below, build_stage
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.model.facts import HostFacts
    from cloche.model.jail import RootOp
    from cloche.model.machine import Kernel
    from cloche.model.request import RunRequest

#: The oldest QEMU with everything a cold start needs (DESIGN section 7).
MINIMUM_VERSION = (7, 2)

#: Until the agent answers, in seconds. Emulated machines on busy hosts are slow; a dead one is noticed otherwise.
_BOOT_TIMEOUT_S = {Accelerator.KVM: 20.0, Accelerator.TCG: 60.0}

#: Replaced by fresh digits when the plan is carried out, so that equal requests have equal plans.
MACHINE_ID_PLACEHOLDER = "0" * 32

_STAGE = b"/stage"
_SERVER_FD = 3
_CLOSED = JailFlag.NO_NEW_PRIVS | JailFlag.SETSID | JailFlag.NOT_DUMPABLE
_ALONE = Namespace.MOUNT | Namespace.NET | Namespace.IPC | Namespace.UTS | Namespace.CGROUP | Namespace.PID
_READ_ONLY = BindFlag.READ_ONLY | BindFlag.NOSUID | BindFlag.NODEV | BindFlag.OPTIONAL
_RLIMIT_CORE, _RLIMIT_NOFILE = 4, 7
#: Open files a file server starts with (`MIN_FDS` of crates/fs), and what a login usually allows.
_LEAST_FILES, _USUAL_FILES = 128, 1024
#: What a file server of root's needs to give every file its owner: chown, dac_override, fowner, fsetid, setgid, setuid.
_OWNER_CAPS = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7


def plan_launch(request: RunRequest, facts: HostFacts, kernel: Kernel | None) -> LaunchPlan:
    """Compute the launch of a machine for ``request``. Pure.

    Raises:
        UsageError: What no machine can have, or no guest.
        ShareError: A share or copy that cannot be where it is asked to be.
        HostError: No kernel, no filters, or KVM was asked for and does not work.
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
    _check_insecure(request.insecure)
    person = resolve_user(request, facts.user)
    ident = "cloche"
    shared = bool(request.shares or request.includes)
    check_places(request.shares, request.includes)
    options = command.MachineOptions(
        shares=shared,
        serial=True,
        boot_log=request.boot_log,
        disks=len(request.disks),
        qemu_version=facts.tools.qemu_version,
    )
    endpoints = [
        Endpoint("control", EndpointKind.LISTEN),
        Endpoint("monitor", EndpointKind.PAIR),
        Endpoint("console", EndpointKind.PAIR),
        Endpoint("system", EndpointKind.LINK),
    ]
    processes = [_system_server(facts, ident)]
    if shared:
        endpoints.append(Endpoint("shares", EndpointKind.LINK))
        processes.append(_shares_server(request, facts))
    if request.disks:
        from cloche.drivers.qemu.disk import plan_disks

        disks, sockets = plan_disks(request.disks, machine, facts, device_jail(facts, "cloche-disk"))
        endpoints += sockets
        processes += disks
    processes.append(_vmm(facts, machine, options))
    return LaunchPlan(
        driver="qemu",
        isolation=Isolation.HARDWARE_VM if machine.accelerator == Accelerator.KVM else Isolation.EMULATED_VM,
        machine=machine,
        endpoints=tuple(endpoints),
        processes=tuple(_give_up(process, request.insecure) for process in processes),
        control="control",
        console="console",
        monitor="monitor",
        setup=build_machine_steps(request, facts.user, person, facts.skeleton, hostname=ident),
        command=build_command(request, facts, person, shown_trees(request.shares)),
        writable_shares=any(share.writable for share in request.shares)
        or any(disk.writable for disk in request.disks),
        boot_timeout_s=request.boot_timeout_s or _BOOT_TIMEOUT_S[machine.accelerator],
        timeout_s=request.timeout_s,
        notices=notices,
        insecure=request.insecure,
    )


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


def _filter(facts: HostFacts, name: str) -> bytes:
    """Return the filter of system calls for a program; a jail without one is none."""
    found = facts.filters.get(name, b"")
    if not found:
        raise HostError(
            f"the filter of system calls for {name} is missing",
            hint="Run `make setup` in cloche's directory.",
        )
    return found


def _check_insecure(parts: tuple[str, ...]) -> None:
    for part in parts:
        if part not in INSECURE_PARTS:
            raise UsageError(
                f"there is no part {part!r} of the jails that can be left out",
                hint=f"There are {' and '.join(INSECURE_PARTS)}.",
            )


def _give_up(process: ProcessPlan, parts: tuple[str, ...]) -> ProcessPlan:
    """Leave parts of a process's jail out, as the user has asked for. Device processes keep the filters in them."""
    if "seccomp" in parts:
        argv = process.argv
        if b"-sandbox" in argv:
            place = argv.index(b"-sandbox")
            argv = (*argv[:place], *argv[place + 2 :])
        process = process._replace(argv=argv, jail=process.jail._replace(seccomp=b""))
    if "namespaces" in parts:
        kept = process.jail.namespaces & INDISPENSABLE
        process = process._replace(jail=process.jail._replace(namespaces=kept))
    return process


def device_jail(facts: HostFacts, program: str, root: tuple[RootOp, ...] = (), *, keep_caps: int = 0) -> Jail:
    """Return the jail of a device process: alone, with nothing to see but ``root``, and the calls its policy allows.

    Raises:
        HostError: The program's filter was not built.
    """
    return Jail(
        namespaces=_ALONE,
        uid=AS_IS,
        gid=AS_IS,
        keep_caps=keep_caps,
        flags=_CLOSED,
        hostname=b"",
        cwd=b"/",
        rlimits=((_RLIMIT_CORE, 0, 0), (_RLIMIT_NOFILE, facts.nofile_hard, facts.nofile_hard)),
        seccomp=_filter(facts, program),
        root=root,
    )


def _server_jail(facts: HostFacts, ops: tuple[RootOp, ...], *, keep_caps: int = 0) -> Jail:
    # The server opens files again by /proc/self/fd; the stage lies beside it, so the guest never sees that /proc.
    root = (Dir(_STAGE, 0o755), Proc(b"/proc"), *ops)
    return device_jail(facts, "cloche-fs", root, keep_caps=keep_caps)


def _server(name: str, arguments: tuple[bytes, ...], jail: Jail, facts: HostFacts) -> ProcessPlan:
    return ProcessPlan(
        name=f"fs-{name}",
        argv=(b"cloche-fs", b"--fd", b"%d" % _SERVER_FD, b"--root", _STAGE, *arguments),
        env=(),
        descriptors=(Descriptor(name, "listen", _SERVER_FD),),
        jail=jail,
        executable=facts.tools.fs,
    )


def _system_server(facts: HostFacts, hostname: str) -> ProcessPlan:
    stage = build_stage(facts, hostname=hostname, machine_id=MACHINE_ID_PLACEHOLDER)
    ids = b"host" if facts.user.uid == 0 else b"squash-root"
    arguments = (b"--cache", b"forever", b"--readonly", b"--ids", ids)
    return _server("system", arguments, _server_jail(facts, below(_STAGE, stage)), facts)


def _shares_server(request: RunRequest, facts: HostFacts) -> ProcessPlan:
    ops: list[RootOp] = []
    for index, share in enumerate(request.shares):
        flags = BindFlag.NOSUID | BindFlag.NODEV | BindFlag.RECURSIVE
        if not share.writable:
            flags |= BindFlag.READ_ONLY
        ops.append(Bind(share.source.encode("utf-8", "surrogateescape"), b"%s/%d" % (_STAGE, index), flags))
    for index, include in enumerate(request.includes):
        name = os.path.basename(include.target).encode("utf-8", "surrogateescape")
        source = include.source.encode("utf-8", "surrogateescape")
        flags = BindFlag.NOSUID | BindFlag.NODEV | BindFlag.READ_ONLY | BindFlag.RECURSIVE
        ops.append(Bind(source, b"%s/i%d/%s" % (_STAGE, index, name), flags))
    user = facts.user
    ids = b"host" if user.uid == 0 else b"caller:%d:%d" % (user.uid, user.gid)
    caps = _OWNER_CAPS if user.uid == 0 else 0
    jail = _server_jail(facts, tuple(ops), keep_caps=caps)
    return _server("shares", (b"--cache", b"coherent", b"--ids", ids), jail, facts)


def _disk_socket(index: int) -> Bind:
    source = RUN_DIRECTORY + b"/" + os.fsencode(socket_name(command.disk_endpoint(index)))
    return Bind(source, f"{command.DISK_SOCKETS}/{index}".encode(), BindFlag.NOSUID | BindFlag.NODEV)


def _vmm(facts: HostFacts, machine: Machine, options: command.MachineOptions) -> ProcessPlan:
    descriptors = [
        Descriptor("control", "listen", command.CONTROL_FD),
        Descriptor("monitor", "there", command.MONITOR_FD),
        Descriptor("console", "there", command.CONSOLE_FD),
        Descriptor("system", "connect", command.SYSTEM_FD),
    ]
    if options.shares:
        descriptors.append(Descriptor("shares", "connect", command.SHARES_FD))
    root: list[RootOp] = [
        Bind(b"/usr/lib", b"/usr/lib", _READ_ONLY | BindFlag.RECURSIVE),
        Bind(b"/usr/lib64", b"/usr/lib64", _READ_ONLY),
        Bind(b"/usr/share/qemu", b"/usr/share/qemu", _READ_ONLY),
        Bind(b"/usr/share/seabios", b"/usr/share/seabios", _READ_ONLY),
        Bind(b"/etc/ld.so.cache", b"/etc/ld.so.cache", _READ_ONLY),
        Bind(os.fsencode(facts.tools.qemu), os.fsencode(facts.tools.qemu), _READ_ONLY),
        Bind(
            os.fsencode(machine.kernel.path),
            command.KERNEL_PATH.encode(),
            BindFlag.READ_ONLY | BindFlag.NOSUID | BindFlag.NODEV,
        ),
        Bind(
            os.fsencode(machine.kernel.initrd),
            command.INITRD_PATH.encode(),
            BindFlag.READ_ONLY | BindFlag.NOSUID | BindFlag.NODEV,
        ),
        *(_disk_socket(index) for index in range(options.disks)),
        Dev(b"/dev"),
        Tmpfs(b"/tmp", 1 << 20, 0o700),
        Tmpfs(
            command.MEMORY_PATH.encode(),
            (machine.memory_mib << 20) + command.HUGE_PAGE,
            0o700,
            TmpfsFlag.HUGE_PAGES,
        ),
    ]
    for path in ("/lib", "/lib64"):
        fact = facts.paths.get(path)
        if fact is not None and fact.kind == "link":
            root.append(Symlink(os.fsencode(fact.target), path.encode()))
        elif fact is not None:
            root.append(Bind(path.encode(), path.encode(), _READ_ONLY | BindFlag.RECURSIVE))
    if machine.accelerator == Accelerator.KVM:
        root.append(Bind(b"/dev/kvm", b"/dev/kvm", BindFlag.NOSUID))
    return ProcessPlan(
        name="vmm",
        argv=tuple(
            word.encode("utf-8", "surrogateescape")
            for word in command.build_vmm_argv(facts.tools.qemu, machine, options)
        ),
        env=(b"TMPDIR=/tmp",),
        descriptors=tuple(descriptors),
        jail=Jail(
            namespaces=_ALONE,
            uid=AS_IS,
            gid=AS_IS,
            keep_caps=0,
            flags=_CLOSED,
            hostname=b"",
            cwd=b"/",
            rlimits=((_RLIMIT_CORE, 0, 0),),
            seccomp=_filter(facts, "qemu-disks" if options.disks else "qemu"),
            root=tuple(root),
        ),
    )
