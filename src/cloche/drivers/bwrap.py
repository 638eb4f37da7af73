"""The bwrap driver (layer 4): namespaces instead of a machine, by bubblewrap, for hosts that can run no VMM.

It is used only when it is asked for: the program shares the host's kernel, and a hole in that kernel is a way out.
"""

from __future__ import annotations

from cloche.drivers.contract import Capabilities, DriverStatus
from cloche.errors import HostError, UsageError
from cloche.model.guest import CopyTree, Step
from cloche.model.jail import AS_IS, Bind, BindFlag, Dev, Dir, Jail, JailFlag, Namespace, Proc, Symlink
from cloche.model.machine import Isolation
from cloche.model.plan import Descriptor, Endpoint, EndpointKind, LaunchPlan, ProcessPlan
from cloche.plan.guest import build_command, resolve_user
from cloche.plan.shares import check_targets
from cloche.plan.stage import SYSTEM_TREES, below, build_stage
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.model.facts import HostFacts
    from cloche.model.jail import RootOp
    from cloche.model.machine import Kernel
    from cloche.model.request import RunRequest

_CONTROL_FD = 3
_STAGE = b"/stage"
_SHARES = b"/shares"
_AGENT = b"/run/cloche/agent"
_INCLUDES = b"/run/cloche/include"
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
        return DriverStatus(True, facts.tools.bwrap)

    def plan(self, request: RunRequest, facts: HostFacts, kernel: Kernel | None) -> LaunchPlan:
        """Compute the launch of a container."""
        del kernel
        _refuse_unsupported(request, facts)
        person = resolve_user(request, facts.user)
        check_targets(tuple(share.target for share in request.shares))
        shown = (*SYSTEM_TREES, *(share.target for share in request.shares if share.target == share.source))
        return LaunchPlan(
            driver="bwrap",
            isolation=Isolation.NAMESPACES,
            machine=None,
            endpoints=(Endpoint("control", EndpointKind.PAIR),),
            processes=(_container(request, facts),),
            control="control",
            console="",
            monitor="",
            setup=_setup(request, facts),
            command=build_command(request, facts, person, shown),
            writable_shares=False,
            boot_timeout_s=request.boot_timeout_s or 10.0,
            timeout_s=request.timeout_s,
            notices=(
                "the bwrap driver isolates by namespaces only: the program uses the host's own kernel.",
            ),
        )


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
        ("--privileged", request.privileged and facts.user.uid != 0),
        ("--user", request.user not in (None, facts.user.name, str(facts.user.uid))),
    )
    for option, given in refused:
        if given:
            raise UsageError(
                f"the bwrap driver cannot do {option}", hint="The qemu driver can; leave out --driver."
            )


def _setup(request: RunRequest, facts: HostFacts) -> tuple[Step, ...]:
    home = facts.user.home.encode("utf-8", "surrogateescape")
    steps: list[Step] = [CopyTree(b"/etc/skel", home, facts.user.uid, facts.user.gid)]
    for index, include in enumerate(request.includes):
        directory = include.target.encode("utf-8", "surrogateescape").rpartition(b"/")[0] or b"/"
        steps.append(CopyTree(b"%s/%d" % (_INCLUDES, index), directory, facts.user.uid, facts.user.gid))
    return tuple(steps)


def _container(request: RunRequest, facts: HostFacts) -> ProcessPlan:
    """Plan bubblewrap in a jail whose tree holds the stage at /stage, the very one a file server would serve."""
    home = facts.user.home.encode("utf-8", "surrogateescape")
    agent = facts.tools.agent.encode("utf-8", "surrogateescape")
    read_only = BindFlag.READ_ONLY | BindFlag.NODEV
    root: list[RootOp] = [Dir(_STAGE, 0o755), Proc(b"/proc"), Dev(b"/dev")]
    root += below(_STAGE, build_stage(facts, hostname="cloche", machine_id="0" * 32))
    root += [Dir(_STAGE + home, 0o700), Bind(agent, _STAGE + _AGENT, read_only)]
    # bubblewrap itself needs its libraries.
    for path in SYSTEM_TREES:
        fact = facts.paths.get(path)
        if fact is not None and fact.kind == "link":
            root.append(Symlink(fact.target.encode(), path.encode()))
        elif fact is not None:
            root.append(Bind(path.encode(), path.encode(), read_only | BindFlag.RECURSIVE))
    argv = [
        facts.tools.bwrap.encode(),
        *(b"--unshare-all", b"--new-session", b"--die-with-parent", b"--as-pid-1", b"--clearenv"),
        *(b"--hostname", b"cloche", b"--cap-drop", b"ALL"),
        *(b"--ro-bind", _STAGE, b"/", b"--proc", b"/proc", b"--dev", b"/dev"),
        *(b"--tmpfs", b"/tmp", b"--tmpfs", b"/var/tmp", b"--tmpfs", b"/dev/shm"),
        *(b"--perms", b"0700", b"--tmpfs", home),
    ]
    for index, share in sorted(enumerate(request.shares), key=lambda pair: pair[1].target):
        place = b"%s/%d" % (_SHARES, index)
        flags = BindFlag.NOSUID | BindFlag.NODEV | BindFlag.RECURSIVE
        root.append(Bind(share.source.encode("utf-8", "surrogateescape"), place, flags))
        target = share.target.encode("utf-8", "surrogateescape")
        root.append(Dir(_STAGE + target, 0o755))
        argv += [b"--bind" if share.writable else b"--ro-bind", place, target]
    for index, include in enumerate(request.includes):
        name = include.target.rpartition("/")[2].encode("utf-8", "surrogateescape")
        source = include.source.encode("utf-8", "surrogateescape")
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
