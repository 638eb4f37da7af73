"""What a plan has become (layer 5): its sockets and jailed processes, of the first word from them to the last.

A domain has one machine at a time, or for a moment two: one that is going on from what the other was saved to. All of
them are started by the same warden, which numbers their processes. Nothing here waits.
"""

from __future__ import annotations

import os

from cloche import log
from cloche.domain.complaints import Complaints
from cloche.domain.console import Console
from cloche.domain.endpoints import Endpoints
from cloche.domain.fresh import fresh_root, open_program, own_ids
from cloche.errors import DomainError, LaunchError
from cloche.host.warden import Failed, Spawned
from cloche.lean import signal
from cloche.model.jail import SpawnSpec
from cloche.model.plan import EndpointKind
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from cloche.domain.couples import Couple
    from cloche.domain.monitor import Monitor, TemplateWork
    from cloche.domain.peers import Peers
    from cloche.domain.restarts import Restarts
    from cloche.domain.restore import Restore
    from cloche.domain.switchboard import Switchboard
    from cloche.domain.timings import Timings
    from cloche.drivers.contract import Control
    from cloche.errors import ClocheError
    from cloche.host.cgroups import DomainCgroup
    from cloche.host.reactor import Reactor
    from cloche.host.rundir import RunDirectory
    from cloche.host.warden import Exited, Warden
    from cloche.model.plan import LaunchPlan, OpenFile, ProcessPlan

_STDERR = 2
#: Exit status of a device process that cannot use what it was given (crates/device).
_UNUSABLE = 4
#: How long the end of one process waits for the word that another was not started, in seconds.
_OTHERS_S = 0.2
_VMM = "vmm"


class Machine:
    """The processes of one plan.

    Attributes:
        plan: What it was made of.
        console: The guest's.
        ended: Called once, with an error that says why the machine ended by itself.
        numbers: The warden's numbers of its processes, in the plan's order, once they are sent off.
        restore: What it goes on from, unless that was made by somebody else.
        closed: It was let go, by ``close`` or because it has ended.
    """

    def __init__(
        self, reactor: Reactor, plan: LaunchPlan, timings: Timings, work: TemplateWork | None = None
    ) -> None:
        """Make a machine of which nothing is started; ``work`` is what is to be done with its memory at the start."""
        self.plan = plan
        self.ended: Callable[[ClocheError], None] = _raise
        self.console = Console(reactor)
        self.console.stands_still = self._stands_still
        self.numbers: tuple[int, ...] = ()
        self.closed = False
        self._reactor = reactor
        self._timings = timings
        self._work = work
        self.restore: Restore | None = None
        self._warden: Warden | None = None
        self._prefix = ""
        self._endpoints: Endpoints | None = None
        self._complaints: dict[int, Complaints] = {}
        self._files: dict[OpenFile, int] = {}
        self._peers: Peers | None = None
        self._switchboard: Switchboard | None = None
        self._couples: dict[int, Couple] = {}
        self._restarts: Restarts | None = None
        self._cgroup: DomainCgroup | None = None
        self._pidfds: dict[int, int] = {}
        self._alive: set[int] = set()
        self._renewed: set[int] = set()
        self._vmm = -1
        self._check_filters: Callable[[LaunchPlan, dict[int, int], int], None] | None = None
        self._verified = False
        self._monitor: Monitor | None = None
        self._control: Control | None = None

    # Starting

    def prepare(self, files: dict[OpenFile, int] | None = None) -> None:
        """Open what its processes are given, before any of them exists; ``files`` are open already, and taken over.

        Raises:
            DiskError: A disk's file cannot be opened.
            NetworkError: Nobody listens where the guest is to be connected to.
            TemplateError: What it is to go on from cannot be used.
        """
        self._files = files or {}
        if self._work is None and self.plan.template is not None:
            from cloche.domain.restore import Restore

            self._work = self.restore = Restore.open(self.plan.template)
        if self._work is not None:
            self._files |= self._work.files
        if any(file not in self._files for process in self.plan.processes for file in process.files):
            from cloche.domain.files import open_files

            self._files |= open_files(self.plan.processes, besides=self._files)
        if any(process.connections for process in self.plan.processes):
            from cloche.domain.peers import Peers

            self._peers = Peers(self._reactor, self._kill)
            for ident, process in enumerate(self.plan.processes):
                if process.connections:
                    self._peers.first(ident, process)
        if any(endpoint.kind == EndpointKind.JOIN for endpoint in self.plan.endpoints):
            from cloche.domain.couples import find_couples

            self._couples = find_couples(self.plan, self._kill)

    def start(
        self,
        warden: Warden,
        directory: RunDirectory,
        cgroup: DomainCgroup | None = None,
        first: int = 0,
        prefix: str = "",
    ) -> None:
        """Make the sockets and send off every process of the plan.

        Args:
            warden: Who starts them.
            directory: Where the sockets are.
            cgroup: What the processes' limits are counted in.
            first: The warden's number for the first process; the others follow.
            prefix: What names of sockets and cgroups begin with: another machine may still have its own there.

        Raises:
            HostError: The sockets cannot be made.
            LaunchError: A process cannot be started.
        """
        self._warden, self._cgroup, self._prefix = warden, cgroup, prefix
        self.numbers = tuple(range(first, first + len(self.plan.processes)))
        self._endpoints = Endpoints(self.plan.endpoints, directory, prefix)
        self._timings.mark("sockets and warden")
        if self.plan.console:
            self.console.listen(self._endpoints.connect(self.plan.console))
        if self.plan.vsock is not None:
            from cloche.domain.switchboard import Switchboard

            asks = self._endpoints.connect(self.plan.vsock.asks)
            self._switchboard = Switchboard(self._reactor, asks, self.plan.vsock.path)
        if self._work is not None:
            from cloche.domain.monitor import Monitor

            connection = self._endpoints.connect(self.plan.monitor)
            self._monitor = Monitor(self._reactor, connection, self._work, self._end)
        machine_id = os.urandom(16).hex().encode()
        for ident, process in enumerate(self.plan.processes):
            self._spawn(ident, process, machine_id)
        lasting = {
            d.endpoint for process in self.plan.processes if process.restarts for d in process.descriptors
        }
        # A pair of sockets is made anew for each start.
        self._endpoints.release(
            keep=frozenset(lasting - {couple.endpoint for couple in self._couples.values()})
        )
        self._timings.mark("processes sent off")
        # While the machine boots, so that it takes no time when the agent answers.
        from cloche.domain.filters import check_filters

        self._check_filters = check_filters

    def _spawn(self, ident: int, process: ProcessPlan, machine_id: bytes = b"") -> None:
        assert self._warden is not None
        assert self._endpoints is not None
        program = open_program(process.executable) if process.executable else None
        complaints = self._complaints[ident] = Complaints(self._reactor)
        fds = [self._endpoints.descriptor(d) for d in process.descriptors]
        fds += [self._files[file] for file in process.files]
        numbers = [d.number for d in process.descriptors] + [file.number for file in process.files]
        argv = process.argv
        peer = self._peers.take(ident, process) if self._peers and process.connections else None
        if peer is not None:
            connection = process.connections[0]
            fds.append(peer.fileno())
            numbers.append(connection.number)
            argv += connection.words
        fds.append(complaints.theirs)
        cgroup = None
        if self._cgroup is not None and process.limits is not None:
            cgroup = self._cgroup.open(self._prefix + process.name, process.limits)
            fds.append(cgroup)
        spec = SpawnSpec(
            id=self.numbers[ident],
            name=process.name.encode(),
            argv=argv,
            env=process.env,
            jail=own_ids(process.jail, self.plan.ids, self._warden.pid, self.numbers[ident])._replace(
                root=fresh_root(process.jail.root, machine_id, self._endpoints.path)
            ),
            fds=(*numbers, _STDERR),
            exe_fd=program is not None,
            cgroup=cgroup is not None,
        )
        log.debug(f"starting {process.name}")
        try:
            self._warden.send_spawn(spec, fds if program is None else [*fds, program])
        except LaunchError as error:
            from cloche.domain import reasons

            raise reasons.gone(self._warden, error, self.name) from None
        except ValueError as error:
            raise LaunchError(f"cannot start {process.name}: {error}", hint="Share fewer things.") from None
        finally:
            complaints.sent()
            if peer is not None:
                # The process's alone: its death is to be the connection's end.
                peer.close()
            for fd in (program, cgroup):
                if fd is not None:
                    os.close(fd)

    # What others need of it

    def connect(self) -> socket.socket:
        """Connect to the agent's byte stream."""
        if self._endpoints is None:
            raise DomainError("the domain was not started")
        return self._endpoints.connect(self.plan.control)

    def take_endpoint(self, name: str) -> socket.socket:
        """Return the supervisor's side of a PAIR, once."""
        assert self._endpoints is not None
        return self._endpoints.connect(name)

    def name(self, number: int) -> str:
        """Return the name of a process by the warden's number."""
        if number in self.numbers:
            return self.plan.processes[self.numbers.index(number)].name
        return "the domain"

    def number_of(self, name: str) -> int:
        """Return the warden's number of a process by its name."""
        return next(
            number
            for number, process in zip(self.numbers, self.plan.processes, strict=True)
            if process.name == name
        )

    @property
    def control(self) -> Control:
        """How it is paused, resumed and saved.

        Raises:
            DomainError: The driver cannot do that.
        """
        if self._control is None:
            from cloche.drivers.registry import find_driver

            self._control = find_driver(self.plan.driver).control(self._reactor, self._take_monitor)
        return self._control

    def _take_monitor(self) -> tuple[socket.socket, bool]:
        """Return the supervisor's side of the VMM's monitor, once, and whether that has been greeted."""
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            return monitor.give_up(), True
        return self.take_endpoint(self.plan.monitor), False

    @property
    def files(self) -> dict[OpenFile, int]:
        """What its processes have open; the descriptors stay the machine's."""
        return self._files

    def verify(self) -> None:
        """Look whether every process has the filters of system calls that its policy asks for, once.

        For the moment when the agent has answered and nothing of the user's has run. Processes that are started anew
        later are the same programs.

        Raises:
            LaunchError: One has not; the domain should be ended.
        """
        if self._verified or self.closed:
            return
        self._verified = True
        try:
            if self._check_filters is not None and "seccomp" not in self.plan.insecure:
                assert self._warden is not None
                self._check_filters(self.plan, self._pidfds, self._warden.pid)
        finally:
            self._forget_pidfds()
        self._timings.mark("filters counted")

    def open_vmm(self) -> int:
        """Return a new descriptor of the VMM's process: the way to the guest's memory.

        Raises:
            OSError: It was not started.
        """
        return os.dup(self._vmm)

    @property
    def is_gone(self) -> bool:
        """Whether none of its processes is there any more."""
        return not self._alive

    def kill(self) -> None:
        """End its processes, and let go of it; the domain goes on with another machine."""
        self.close()
        if self._warden is not None:
            for number in self._alive:
                self._warden.kill(number, signal.SIGKILL)

    def renew(self, plan: LaunchPlan, name: str) -> None:
        """Go on with another plan, in which one process, started anew when it dies, is another: end that."""
        ident = self.numbers.index(self.number_of(name))
        self.plan = plan
        self._renewed.add(ident)
        self._kill(ident, signal.SIGTERM)

    def _forget_pidfds(self) -> None:
        while self._pidfds:
            os.close(self._pidfds.popitem()[1])

    def _kill(self, ident: int, signo: int) -> None:
        assert self._warden is not None
        try:
            self._warden.kill(self.numbers[ident], signo)
        except LaunchError as error:
            self._end(error)

    # What is heard from the domain

    def handle(self, event: Spawned | Failed | Exited) -> None:
        """Take the warden's word of one of its processes."""
        ident = self.numbers.index(event.id)
        if isinstance(event, Spawned):
            self._alive.add(event.id)
            self._spawned(ident, event.pidfd)
        elif isinstance(event, Failed):
            from cloche.domain import reasons

            self._end(reasons.not_started(event, self.name(event.id)))
        else:
            self._alive.discard(event.id)
            self._process_ended(ident, event)

    def _spawned(self, ident: int, pidfd: int) -> None:
        if self.closed:
            os.close(pidfd)
            return
        name = self.plan.processes[ident].name
        before = pidfd if self._verified else self._pidfds.pop(ident, None)
        if name == _VMM:
            self._vmm = os.dup(pidfd)
        if not self._verified:
            self._pidfds[ident] = pidfd
        self._timings.mark(f"{name} started")
        if self._monitor is not None and name == _VMM:
            self._monitor.started(pidfd)
            self._timings.mark("memory filled")
        if before is not None:
            os.close(before)

    def _process_ended(self, ident: int, event: Exited, *, patient: bool = True) -> None:
        if self.closed:
            return
        from cloche.domain import reasons

        process = self.plan.processes[ident]
        how = reasons.how(event)
        if event.signal == signal.SIGKILL and self._ran_out_of_memory(process):
            assert process.limits is not None
            how = f"was killed by the kernel: it wanted more than the {process.limits.memory >> 20} MiB it may have"
        log.debug(f"{process.name} {how}")
        if ident in self._renewed:
            self._renewed.discard(ident)
            self._complaints.pop(ident).close()
            self._try_spawn(ident, process)
            return
        if process.name.startswith(("fs-", "devices")) and event.status == 0:
            return  # it ends by itself when the VMM has hung up: the VMM's own end says why
        if process.files and event.status == _UNUSABLE:
            self._end(reasons.unusable(process, self._complaints[ident].last_words()))
        elif ident in self._couples:
            couple = self._couples[ident]
            cause = couple.note(event._replace(id=ident))
            if cause is not None:
                self._start_again(cause.id, cause, reasons.how(cause), couple)
        elif process.restarts:
            self._start_again(ident, event, how)
        elif process.essential and self._work and len(self._pidfds) < len(self.plan.processes) and patient:
            # Another one that cannot be started takes the VMM along; that would be the reason, and not the template.
            self._reactor.call_later(_OTHERS_S, lambda: self._process_ended(ident, event, patient=False))
        elif process.essential:
            self.console.drain()
            if process.name == _VMM and event.status == 0 and (done := self.console.rebooted()) is not None:
                self._end(reasons.by_program(done))
                return
            said = self._complaints[ident].last_words() or tuple(self.console.tail())
            self._end(reasons.ended(event, process, how, said))

    def _ran_out_of_memory(self, process: ProcessPlan) -> bool:
        return self._cgroup is not None and self._cgroup.was_out_of_memory(self._prefix + process.name)

    def _start_again(self, ident: int, event: Exited, how: str, couple: Couple | None = None) -> None:
        """Start a process that has died anew; who talked to it connects to the same socket again.

        With it comes the other one of a ``couple`` of which both have ended.
        """
        from cloche.domain import reasons
        from cloche.domain.restarts import TOO_OFTEN, Restarts

        process = self.plan.processes[ident]
        # What it said before somebody killed it explains nothing.
        said = () if event.signal == signal.SIGKILL else self._complaints[ident].last_words()
        for one in couple.idents if couple else (ident,):
            self._complaints.pop(one).close()
        self._restarts = self._restarts or Restarts()
        if self._peers and process.connections and self._peers.explain(ident, event, process):
            self._try_spawn(ident, process)
            return
        if couple is not None and reasons.is_stranded(event, process):
            self._end(reasons.stranded(how, said))
            return
        if not self._restarts.may_restart(ident):
            self._end(reasons.died_often(process, f"{how}, {TOO_OFTEN}", said))
            return
        log.notice(f"{process.name} {how} and is started again" + (f": {said[-1]}" if said else ""))
        if couple is None:
            self._try_spawn(ident, process)
            return
        assert self._endpoints is not None
        self._endpoints.join(couple.endpoint)
        for one in couple.idents:
            if not self.closed:
                self._try_spawn(one, self.plan.processes[one])
        if not self.closed:
            self._endpoints.part(couple.endpoint)

    def _try_spawn(self, ident: int, process: ProcessPlan) -> None:
        try:
            self._spawn(ident, process)
        except (LaunchError, DomainError) as error:
            self._end(error)

    def _stands_still(self, done: str) -> None:
        """A machine without ACPI cannot be switched off, and nothing but its console says so."""
        from cloche.domain import reasons

        self._end(reasons.by_program(done))

    def _end(self, error: ClocheError) -> None:
        if not self.closed:
            ended = self.ended
            self.close()
            ended(error)

    def close(self) -> None:
        """Listen no more, and let go of everything that was kept for its processes. May be called twice.

        The processes end with their warden, or by ``kill`` before this.
        """
        if self.closed:
            return
        self.closed = True
        self._forget_pidfds()
        if self._vmm >= 0:
            os.close(self._vmm)
            self._vmm = -1
        self.console.drain()
        self.console.close()
        for one in (
            self._monitor,
            self._control,
            self._work,
            self._peers,
            self._switchboard,
            self._endpoints,
        ):
            if one is not None:
                one.close()
        for complaints in self._complaints.values():
            complaints.close()
        while self._files:
            os.close(self._files.popitem()[1])


def _raise(error: ClocheError) -> None:
    raise error
