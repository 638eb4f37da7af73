"""The bwrap driver (layer 4): namespaces instead of a machine, by bubblewrap, for hosts that can run no VMM.

It is used only when it is asked for: the program shares the host's kernel, and a hole in that kernel is a way out.
"""

from __future__ import annotations

import os

from cloche.drivers.contract import Capabilities, DriverStatus
from cloche.errors import DomainError, HostError, TemplateError, UsageError
from cloche.model.guest import CopyTree, Step
from cloche.model.jail import AS_IS, Bind, BindFlag, Dev, Dir, Jail, JailFlag, Namespace, Proc, Symlink
from cloche.model.machine import Devices, Isolation
from cloche.model.plan import Descriptor, Endpoint, EndpointKind, LaunchPlan, ProcessPlan, SharingPlan
from cloche.plan.guest import build_command, build_copy_steps, resolve_user, shown_trees
from cloche.plan.places import check_places
from cloche.plan.shares import contains
from cloche.plan.stage import SYSTEM_TREES, below, build_stage
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.drivers.contract import Control
    from cloche.host.reactor import Reactor
    from cloche.lean import socket
    from cloche.model.facts import HostFacts, User
    from cloche.model.jail import RootOp
    from cloche.model.machine import Kernel
    from cloche.model.plan import Template
    from cloche.model.request import Include, RunRequest

_CONTROL_FD = 3
_STAGE = b"/stage"
_SHARES = b"/shares"
_AGENT = b"/run/cloche/agent"
_INCLUDES = b"/run/cloche/include"
_TEMPORARY = ("/tmp", "/var/tmp")
_RLIMIT_CORE = 4


class BwrapDriver:
    """See the module's docstring."""

    name = "bwrap"

    def capabilities(self, facts: HostFacts) -> Capabilities:
        """Return what the driver can do."""
        del facts
        return Capabilities(
            isolation=Isolation.NAMESPACES,
            needs_kernel=False,
            memory_limit=False,
            cpu_limit=False,
            pids_limit=False,
            writable_system=False,
            other_users=False,
            pause=False,
            save=False,
        )

    def status(self, facts: HostFacts) -> DriverStatus:
        """Return whether bubblewrap is there."""
        if not facts.tools.bwrap:
            return DriverStatus(False, "bubblewrap is not installed", "Install the package bubblewrap.")
        if facts.user.uid == 0:
            # Most of /proc/sys asks for the user id of root and no capability: such a container could change the host.
            return DriverStatus(
                False, "it would not hold root", "Run cloche as an ordinary user, or use the qemu driver."
            )
        return DriverStatus(True, facts.tools.bwrap)

    def plan(
        self, request: RunRequest, facts: HostFacts, kernel: Kernel | None, template: Template | None = None
    ) -> LaunchPlan:
        """Compute the launch of a container."""
        del kernel, template
        _refuse_unsupported(request, facts)
        person = resolve_user(request, facts.user)
        check_places(request.shares, request.includes)
        _refuse_unreachable(request.includes, facts.user.home)
        return LaunchPlan(
            driver="bwrap",
            isolation=Isolation.NAMESPACES,
            machine=None,
            endpoints=(Endpoint("control", EndpointKind.PAIR),),
            processes=(_container(request, facts),),
            control="control",
            console="",
            monitor="",
            setup=_setup(request, facts.user),
            command=build_command(request, facts, person, shown_trees(request)),
            request=request,
            writable_shares=False,
            boot_timeout_s=request.boot_timeout_s or 10.0,
            timeout_s=request.timeout_s,
            sharing=SharingPlan(
                request.shares, request.includes, facts.user, numbers=tuple(range(len(request.shares)))
            ),
            notices=(
                "the bwrap driver isolates by namespaces only: the program uses the host's own kernel.",
            ),
        )

    def why_cold(self, request: RunRequest, facts: HostFacts, kernel: Kernel | None) -> str:
        """Say no."""
        del request, facts, kernel
        return "there is nothing to boot"

    def plan_template(self, request: RunRequest, facts: HostFacts, kernel: Kernel) -> LaunchPlan:
        """Refuse: ``why_cold`` has said no."""
        del request, facts, kernel
        raise TemplateError("the bwrap driver has no machine to save")

    def control(self, reactor: Reactor, take_monitor: Callable[[], tuple[socket.socket, bool]]) -> Control:
        """Refuse: its programs are the host's own processes, and nothing holds all of them at once."""
        del reactor, take_monitor
        raise DomainError(
            "the bwrap driver cannot pause a domain", hint="The qemu driver can; leave out --driver."
        )

    def why_not_saveable(self, plan: LaunchPlan, facts: HostFacts) -> str:
        """Say no."""
        del plan, facts
        return "nothing saves the processes of a container"


def _refuse_unsupported(request: RunRequest, facts: HostFacts) -> None:
    if not facts.tools.bwrap:
        raise HostError("bubblewrap is not installed", hint="Install the package bubblewrap.")
    refused = (
        ("--memory", request.memory_mib is not None),
        ("--cpus", request.cpus is not None),
        ("--pids", request.pids is not None),
        ("--kernel", request.kernel is not None),
        ("--accel", request.accelerator is not None),
        ("--boot-log", request.boot_log),
        ("profiles", request.layer is not None),
        ("--disk", bool(request.disks) and not (request.mounts or request.root)),
        ("--root", request.root is not None),
        ("--mount but host-bind", bool(request.mounts)),
        ("--share-later", request.share_later),
        ("--net", request.network is not None),
        ("--hwrng", request.hwrng),
        ("--vsock", bool(request.vsock)),
        (f"--devices={request.devices}", request.devices != Devices.PROCESS),
        ("--insecure-no-jail", bool(request.insecure)),
        ("--privileged", request.privileged and facts.user.uid != 0),
        ("--user", request.user not in (None, facts.user.name, str(facts.user.uid))),
    )
    for option, given in refused:
        if given:
            raise UsageError(
                f"the bwrap driver cannot do {option}", hint="The qemu driver can; leave out --driver."
            )


def _refuse_unreachable(includes: tuple[Include, ...], home: str) -> None:
    """Refuse copies to where the container's root is the host's own, read-only.

    Raises:
        UsageError: A copy outside of the home and the directories for temporary files.
    """
    for include in includes:
        if not any(contains(tree, include.target) for tree in (home, *_TEMPORARY)):
            raise UsageError(
                f"the bwrap driver cannot copy to {include.target}: its system tree is the host's own, read-only",
                hint="Copy below the home, /tmp or /var/tmp, or leave out --driver.",
            )


def _setup(request: RunRequest, user: User) -> tuple[Step, ...]:
    steps: list[Step] = []
    # The shares are in place already: a home that is shared is the host's own.
    if not any(contains(share.target, user.home) for share in request.shares):
        home = os.fsencode(user.home)
        steps.append(CopyTree(b"/etc/skel", home, user.uid, user.gid))
    steps += build_copy_steps(request.includes, user, user, source=_INCLUDES + b"/%d")
    return tuple(steps)


def _container(request: RunRequest, facts: HostFacts) -> ProcessPlan:
    """Plan bubblewrap in a jail whose tree holds the stage at /stage, the very one a file server would serve."""
    home = os.fsencode(facts.user.home)
    agent = os.fsencode(facts.tools.agent)
    read_only = BindFlag.READ_ONLY | BindFlag.NODEV
    # bubblewrap puts its new root together on /tmp.
    root: list[RootOp] = [Dir(_STAGE, 0o755), Dir(b"/tmp", 0o700), Proc(b"/proc"), Dev(b"/dev")]
    root += below(_STAGE, build_stage(facts, hostname="cloche", machine_id="0" * 32))
    root += [Dir(_STAGE + home, 0o700), Bind(agent, _STAGE + _AGENT, read_only)]
    # bubblewrap itself needs its libraries.
    for path in SYSTEM_TREES:
        fact = facts.paths.get(path)
        if fact is not None and fact.kind == "link":
            root.append(Symlink(os.fsencode(fact.target), path.encode()))
        elif fact is not None:
            root.append(Bind(path.encode(), path.encode(), read_only | BindFlag.RECURSIVE))
    argv = [
        os.fsencode(facts.tools.bwrap),
        *(b"--unshare-all", b"--new-session", b"--die-with-parent", b"--as-pid-1", b"--clearenv"),
        *(b"--hostname", b"cloche", b"--cap-drop", b"ALL"),
        *(b"--ro-bind", _STAGE, b"/", b"--proc", b"/proc", b"--dev", b"/dev"),
        *(b"--tmpfs", b"/tmp", b"--tmpfs", b"/var/tmp", b"--tmpfs", b"/dev/shm"),
        *(b"--perms", b"0700", b"--tmpfs", home),
    ]
    for index, share in sorted(enumerate(request.shares), key=lambda pair: pair[1].target):
        place = b"%s/%d" % (_SHARES, index)
        flags = BindFlag.NOSUID | BindFlag.NODEV | BindFlag.RECURSIVE
        root.append(Bind(os.fsencode(share.source), place, flags))
        target = os.fsencode(share.target)
        root.append(Dir(_STAGE + target, 0o755))
        argv += [b"--bind" if share.writable else b"--ro-bind", place, target]
    for index, include in enumerate(request.includes):
        name = os.fsencode(include.target.rpartition("/")[2])
        source = os.fsencode(include.source)
        root.append(Bind(source, b"%s%s/%d/%s" % (_STAGE, _INCLUDES, index, name), read_only))
    argv += [b"--chdir", b"/", b"--", _AGENT, b"--fd", b"%d" % _CONTROL_FD]
    return ProcessPlan(
        name="container",
        argv=tuple(argv),
        env=(),
        descriptors=(Descriptor("control", "there", _CONTROL_FD),),
        jail=Jail(
            namespaces=Namespace.MOUNT,
            uid=AS_IS,
            gid=AS_IS,
            keep_caps=0,
            flags=JailFlag.NO_NEW_PRIVS | JailFlag.SETSID,
            hostname=b"",
            cwd=b"/",
            rlimits=((_RLIMIT_CORE, 0, 0),),
            seccomp=b"",
            root=tuple(root),
        ),
    )
