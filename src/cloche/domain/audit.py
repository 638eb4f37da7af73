"""Looking at a running domain from outside (layer 5): what the kernel says of its processes, held against the policies.

No plan is read. A process is told by where it stands below the domain's warden and by the file it executes, and held
against ``model.audit``. What cannot be found out counts as failed where a policy needs it.
"""

from __future__ import annotations

import functools
import os

from cloche.errors import DomainError
from cloche.host.bpf import count_allowed
from cloche.host.cgroups import ROOT as CGROUP_ROOT
from cloche.host.fdlook import read_sockets
from cloche.host.pids import start_time, stat_fields
from cloche.host.procfs import CAPABILITY_SETS, NAMESPACES, Process, descendants, read_process
from cloche.host.text import escape_untrusted
from cloche.host.tools import read_filter
from cloche.model.audit import CONTAINED, INIT, SUPERVISOR, WARDEN, Hold, hold_of_program
from cloche.model.machine import Devices
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cloche.host.rundir import Running

#: linux/capability.h, by number.
CAPABILITY_WORDS = (
    "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service"
    " net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct"
    " sys_admin sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap"
    " mac_override mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore"
)
#: Programs that put on a filter of their own, which differs from version to version.
OWN_INNER = ("vmm", "passt")
#: Without its supervisor, a domain has the warden's two processes and at least one that does something.
_FEWEST = 3
#: What is said of a process that is still the warden.
_STARTING = "has not executed its program yet; run the audit again"


class Audited(Record):
    """A process and the verdict on it.

    Attributes:
        role: What it is in the domain.
        own: The namespaces in which it is apart from the supervisor; those not known are missing.
        filters: The filters of system calls that it has besides the supervisor's.
        calls: How many system calls these let through; None when they are not those of its policy.
        failures: What does not hold, a clause each.
        devices: Whose devices it holds together (``model.machine.NOT_APART``), empty where they are apart.
    """

    role: str
    process: Process
    own: tuple[str, ...]
    filters: int
    calls: int | None
    failures: tuple[str, ...]
    devices: str = ""


class Audit(Record):
    """A domain and the verdict on it. ``cgroup`` is the directory of its cgroup, empty when it has none."""

    domain: str
    supervisor: int
    insecure: tuple[str, ...]
    processes: tuple[Audited, ...]
    cgroup: str = ""

    @property
    def failures(self) -> tuple[str, ...]:
        """One line for each thing that does not hold."""
        lines = [f"{one.role} ({one.process.pid}) {what}" for one in self.processes for what in one.failures]
        return tuple(lines)

    @property
    def devices(self) -> str:
        """Where its devices are (``model.machine.Devices``)."""
        return next((one.devices for one in self.processes if one.devices), Devices.PROCESS)


def audit_domain(running: Running) -> Audit:
    """Look at every process of a domain.

    Raises:
        DomainError: It ended meanwhile, has not begun, or hides something that every process shows.
    """
    gone = DomainError(f"the domain {running.ident} has ended", hint="`cloche audit` looks at running ones.")
    if start_time(running.warden) != running.start:
        raise gone
    sockets = read_sockets(running.warden)
    seen = {}
    try:
        parent = int(stat_fields(running.warden)[1])
    except OSError:
        raise gone from None
    for pid in (parent, *descendants(running.warden)):
        try:
            process = read_process(pid, sockets)
        except OSError as error:
            raise DomainError(
                f"cannot look at the process {pid} of the domain {running.ident}: {error.strerror}"
                f" ({error.filename})",
                hint="If it stays so, do not trust the domain: `kill` its supervisor.",
            ) from None
        if process is not None:
            seen[pid] = process
    warden = seen.get(running.warden)
    if warden is None or warden.start != running.start:
        raise gone
    supervisor = seen.pop(parent, None)
    if supervisor is None or warden.parent != parent:
        raise gone
    if len(seen) < _FEWEST:
        # Nothing to fail on is not the same as nothing that fails.
        raise DomainError(
            f"the domain {running.ident} shows {len(seen)} of its processes only",
            hint="It may have just begun: try again. If not, see that /proc is not mounted with hidepid.",
        )
    return Audit(
        running.ident,
        warden.parent,
        running.insecure,
        (judge_supervisor(supervisor, warden), *judge(tuple(seen.values()), running.cgroup)),
        running.cgroup,
    )


def judge(processes: tuple[Process, ...], cgroup: str = "") -> tuple[Audited, ...]:
    """Hold the processes of a domain against the policies; the first is the warden, parents come before children.

    ``cgroup`` is the directory of the domain's cgroup, in which each must be limited; empty where none is.
    """
    roles = _Roles(processes[0])
    found = tuple(_judge(process, processes[0], roles) for process in processes)
    if cgroup:
        found = tuple(one._replace(failures=(*one.failures, *_check_limits(one, cgroup))) for one in found)
    if processes[0].uids[1] != 0:
        return found
    users = [process.uids[1] for process in processes]
    return tuple(
        one._replace(
            failures=(*one.failures, f"shares its user id {one.process.uids[1]} with another process")
        )
        if one.process.uids[1] != 0 and users.count(one.process.uids[1]) > 1
        else one
        for one in found
    )


def judge_supervisor(process: Process, warden: Process) -> Audited:
    """Hold a domain's supervisor against its policy. Its filters are those that the warden, made before, has not."""
    failures = _failures(SUPERVISOR, process, warden, ())
    filters = process.filters - warden.filters
    return Audited(SUPERVISOR.role, process, (), filters, None, tuple(failures))


class _Roles:
    """Which policy holds a process: by its place below the warden, then by the file it executes."""

    def __init__(self, warden: Process) -> None:
        self._warden = warden
        self._init = 0
        self._contained: set[int] = set()

    def find(self, process: Process) -> Hold | None:
        """Return a process's policy. Parents must be asked for before their children."""
        if process.pid == self._warden.pid:
            return WARDEN
        if process.parent == self._warden.pid and not self._init:
            self._init = process.pid
            return INIT
        if process.parent in self._contained:
            self._contained.add(process.pid)
            return CONTAINED
        hold = hold_of_program(
            os.path.basename(process.program.removesuffix(" (deleted)")),
            process.argv,
            as_root=self._warden.uids[1] == 0,
        )
        if hold is not None and hold.role == "container":
            self._contained.add(process.pid)
        return hold

    def check_parent(self, hold: Hold, process: Process) -> Iterator[str]:
        """Yield a failure for a process that something else than PID 1 has started."""
        if hold not in (WARDEN, INIT, CONTAINED) and process.parent != self._init:
            yield f"was started by the process {process.parent} and not by the warden"


def _judge(process: Process, warden: Process, roles: _Roles) -> Audited:
    hold = roles.find(process)
    own = own_namespaces(process, warden)
    filters = process.filters - warden.filters
    if hold is None:
        starting = os.path.basename(process.program) == "cloche-warden"
        name = escape_untrusted(os.fsencode(process.program or process.name), 80)
        why = _STARTING if starting else f"executes {name}, for which there is no policy"
        return Audited("starting" if starting else "unknown", process, own, filters, None, (why,))
    calls = _calls(hold) if hold.calls and filters == hold.filters else None
    failures = (*roles.check_parent(hold, process), *_failures(hold, process, warden, own))
    return Audited(hold.role, process, own, filters, calls, failures, hold.devices)


def own_namespaces(process: Process, reference: Process) -> tuple[str, ...]:
    """Return the namespaces in which a process is apart from another one, as far as the kernel tells."""
    own = {
        name
        for name, number in process.namespaces.items()
        if number != reference.namespaces.get(name, number)
    }
    # These three show without looking into the process.
    if len(process.pids) > len(reference.pids):
        own.add("pid")
    if process.id_map != reference.id_map:
        own.add("user")
    ours = {mount.ident for mount in reference.mounts}
    if process.mounts and all(mount.ident not in ours for mount in process.mounts):
        own.add("mnt")
    return tuple(name for name in NAMESPACES if name in own)


def _calls(hold: Hold) -> int | None:
    """Return how many calls are left by the tightest filter that cloche compiled for it."""
    inner = b"" if hold.role in OWN_INNER else read_filter(f"{hold.calls}.inner")
    return count_allowed(inner or read_filter(hold.calls))


def _failures(hold: Hold, process: Process, warden: Process, own: tuple[str, ...]) -> Iterator[str]:
    checks: tuple[Callable[[Hold, Process, Process, tuple[str, ...]], Iterator[str]], ...] = (
        _check_ids,
        _check_rights,
        _check_filters,
        _check_namespaces,
        _check_openness,
        _check_root,
    )
    for check in checks:
        yield from check(hold, process, warden, own)


def _check_ids(hold: Hold, process: Process, warden: Process, own: tuple[str, ...]) -> Iterator[str]:
    del own
    if hold.own_id and warden.uids[1] == 0:
        if 0 in (*process.uids, *process.gids, *process.groups):
            yield "runs under an id of root's"
        return
    for what, ids, owner in (("user", process.uids, warden.uids[1]), ("group", process.gids, warden.gids[1])):
        if len(set(ids)) != 1 or (owner != 0 and ids[0] != owner):
            yield f"has the {what} ids {'/'.join(map(str, ids))}, not those of its owner"


def _check_rights(hold: Hold, process: Process, warden: Process, own: tuple[str, ...]) -> Iterator[str]:
    del warden, own
    if hold.capabilities is not None:
        sets = [
            0 if name == "bounding" and not hold.bounding else mask & ~hold.capabilities
            for name, mask in zip(CAPABILITY_SETS, process.capabilities, strict=True)
        ]
        if any(sets):
            names = ", ".join(name for name, mask in zip(CAPABILITY_SETS, sets, strict=True) if mask)
            every = capability_names(functools.reduce(int.__or__, sets))
            what = ", ".join(every) if len(every) < 8 else f"{len(every)} of them"
            yield f"has capabilities that its policy does not give it: {what} ({names})"
    if hold.no_new_privs and not process.no_new_privs:
        yield "could gain rights by executing a program (no_new_privs is off)"


def _check_filters(hold: Hold, process: Process, warden: Process, own: tuple[str, ...]) -> Iterator[str]:
    del own
    found = process.filters - warden.filters
    if found < hold.filters:
        yield f"has {found} of the {hold.filters} filters of system calls that its policy needs"
    elif hold.calls and process.programs is not None:
        names = (
            (hold.calls,)
            if hold.role in (*OWN_INNER, SUPERVISOR.role)
            else (hold.calls, f"{hold.calls}.inner")
        )
        for name, where in zip(names, ("outside", "inside"), strict=False):
            if read_filter(name) not in process.programs:
                yield f"has another filter of system calls from {where} than its policy's"


def _check_namespaces(hold: Hold, process: Process, warden: Process, own: tuple[str, ...]) -> Iterator[str]:
    missing = [name for name in hold.namespaces if name not in own]
    if missing:
        yield f"shares namespaces with the host: {', '.join(missing)}"
    # Each device is alone in its own, not only away from the host.
    if hold.own_root and len(process.pids) < len(warden.pids) + 2:
        yield "sees the other processes of its domain (its pid namespace is the domain's)"


def _check_openness(hold: Hold, process: Process, warden: Process, own: tuple[str, ...]) -> Iterator[str]:
    del warden, own
    if hold.closed and process.dumpable is not False:
        yield "can be looked into by others of its user (it is dumpable)"
    # One byte is what the kernel takes as none, for its core handler too (core(5)).
    if hold.no_core and (process.core_limit is None or process.core_limit > 1):
        yield "may leave a core file"
    if hold.session and process.sessions[-1] != process.pids[-1]:
        yield "has no session of its own"


def _check_root(hold: Hold, process: Process, warden: Process, own: tuple[str, ...]) -> Iterator[str]:
    del own
    hosts = {mount.device for mount in warden.mounts}
    if hold.own_root:
        root = next((mount for mount in reversed(process.mounts) if mount.path == "/"), None)
        if root is None or root.writable or root.device in hosts:
            yield "has a root that is not a read-only one of its own"
    for mount in process.mounts if hold.writable is not None else ():
        if (
            mount.writable
            and mount.device in hosts
            and mount.path != "/"
            and not _may_write(hold, mount.path)
        ):
            yield f"can write to {escape_untrusted(os.fsencode(mount.path), 200)}"


def _check_limits(one: Audited, cgroup: str) -> Iterator[str]:
    """Yield what does not hold of a process that the warden has started in the domain's cgroup."""
    if one.role in (WARDEN.role, INIT.role, "starting"):
        return
    limits = one.process.limits
    if os.path.dirname(CGROUP_ROOT + limits.path) != cgroup:
        yield "is in another cgroup than its own"
        return
    for what, most in (("memory", limits.memory), ("number of threads", limits.processes)):
        if most is None:
            yield f"has no limit of its {what}"


def _may_write(hold: Hold, path: str) -> bool:
    return any(
        path == place or (place[-1] == "/" and path.startswith(place)) for place in hold.writable or ()
    )


def capability_names(mask: int) -> tuple[str, ...]:
    """Return the names of capabilities, those that this version does not know by number."""
    names = dict(enumerate(CAPABILITY_WORDS.split()))
    return tuple(names.get(bit, str(bit)) for bit in range(64) if mask >> bit & 1)
