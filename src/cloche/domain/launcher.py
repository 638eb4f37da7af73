"""Carrying out a plan (layer 5): sockets, the warden, the jailed processes, and their end.

The order is written once, here: run directory, sockets, warden, processes in the plan's order. All of it is sent off
without waiting for answers in between; what fails is reported when the answer comes. The end is one step: the warden
is told to go, and the kernel takes everything in its namespace with it.
"""

from __future__ import annotations

import os

from cloche import log
from cloche.domain.complaints import Complaints
from cloche.domain.console import Console
from cloche.domain.control.door import Door
from cloche.domain.endpoints import Endpoints
from cloche.domain.fresh import fresh_root, open_program, own_ids
from cloche.errors import DomainError, LaunchError
from cloche.host.reactor import READ
from cloche.host.rundir import RunDirectory
from cloche.host.tools import require_own_binary
from cloche.host.warden import WARDEN_ID, Done, Failed, Ready, Spawned, Warden
from cloche.model.jail import SpawnSpec
from cloche.model.plan import EndpointKind
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from cloche.domain.couples import Couple
    from cloche.domain.monitor import Monitor, TemplateWork
    from cloche.domain.peers import Peers
    from cloche.domain.programs import Programs
    from cloche.domain.restarts import Restarts
    from cloche.domain.sharing import GuestAnswer, Sharing
    from cloche.domain.timings import Timings
    from cloche.errors import ClocheError
    from cloche.host.cgroups import DomainCgroup
    from cloche.host.reactor import Reactor
    from cloche.host.warden import Event, Exited
    from cloche.model.guest import Step
    from cloche.model.plan import LaunchPlan, OpenFile, ProcessPlan

_STDERR = 2
_SIGKILL = 9
#: Exit status of a device process that cannot use what it was given (crates/device).
_UNUSABLE = 4
#: How long the end of one process waits for the word that another was not started, in seconds.
_OTHERS_S = 0.2


class Launcher:
    """The processes of one domain.

    Attributes:
        reactor: What drives it.
        ended: Called once, with an error that says why the domain ended by itself.
        ask_guest: Does steps in the guest, after a sync if that is asked for, and calls back with the answer.
        is_remote: Whether it works for a program that uses the API and has the guest to itself.
        programs: What runs in the guest; None where that is not this process's to know.
    """

    def __init__(
        self,
        reactor: Reactor,
        plan: LaunchPlan,
        timings: Timings,
        warden: Warden | None = None,
        template: TemplateWork | None = None,
    ) -> None:
        """Make a launcher that has started nothing.

        Args:
            reactor: Who calls when something is heard.
            plan: What is to be started.
            timings: Where it is noted when.
            warden: One that nothing was asked of yet, to be taken over; without one, ``start`` starts it.
            template: What makes a template of the machine. That it goes on from one stands in the plan.
        """
        self.plan = plan
        self.ended: Callable[[ClocheError], None] = _raise
        self.ask_guest: Callable[[tuple[Step, ...], bool, Callable[[GuestAnswer], None]], None]
        self.is_remote = False
        self.programs: Programs | None = None
        self.console = Console(reactor)
        self.console.stands_still = self._stands_still
        self.reactor = reactor
        self._timings = timings
        self._warden = warden
        self._endpoints: Endpoints | None = None
        self._directory: RunDirectory | None = None
        self._complaints: dict[int, Complaints] = {}
        self._files: dict[OpenFile, int] = {}
        self._restarts: Restarts | None = None
        self._pidfds: dict[int, int] = {}
        self._check_filters: Callable[[LaunchPlan, dict[int, int]], None] | None = None
        self._verified = False
        self._door: Door | None = None
        self._sharing: Sharing | None = None
        self._requests: dict[int, Callable[[Done], None]] = {}
        self._last_request = 0
        self._peers: Peers | None = None
        self._couples: dict[int, Couple] = {}
        self._template: TemplateWork | None = template
        self._monitor: Monitor | None = None
        self._cgroup: DomainCgroup | None = None
        self._closed = False

    @property
    def ident(self) -> str:
        """The domain's own name: that of its run directory."""
        return self._directory.ident if self._directory else ""

    @property
    def name(self) -> str:
        """What its owner calls the domain; empty where nobody has named it."""
        return self._directory.name if self._directory else ""

    def rename(self, name: str) -> None:
        """Call the domain something else (see ``RunDirectory.rename`` for what is raised)."""
        assert self._directory is not None
        self._directory.rename(name)

    def start(self) -> None:
        """Make the sockets and send off every process of the plan.

        Raises:
            HostError: The run directory, the warden or a binary is missing.
            DiskError: A disk's file cannot be opened.
            NetworkError: Nobody listens where the guest is to be connected to.
            TemplateError: The template cannot be used.
        """
        if self.plan.template is not None:
            from cloche.domain.restore import Restore

            self._template = Restore(self.plan.template)
        if self._template is not None:
            self._files = self._template.files
        if any(file not in self._files for process in self.plan.processes for file in process.files):
            from cloche.domain.files import open_files

            self._files |= open_files(self.plan.processes, besides=self._files)
        if any(process.connections for process in self.plan.processes):
            from cloche.domain.peers import Peers

            self._peers = Peers(self.reactor, self._kill)
            for ident, process in enumerate(self.plan.processes):
                if process.connections:
                    self._peers.first(ident, process)
        if any(endpoint.kind == EndpointKind.JOIN for endpoint in self.plan.endpoints):
            from cloche.domain.couples import find_couples

            self._couples = find_couples(self.plan, self._kill)
        self._directory = RunDirectory.create(self.plan.name)
        # The warden needs nothing of the others: it comes up while they are made.
        self._warden = self._warden or Warden.start(require_own_binary("cloche-warden"))
        self._directory.record_warden(self._warden.pid, self.plan.insecure)
        self.reactor.register(self._warden.fileno(), READ, self._hear)
        self._endpoints = Endpoints(self.plan.endpoints, self._directory)
        if self.plan.cgroup:
            from cloche.host.cgroups import DomainCgroup, directory_of

            # Noted first: what is noted and not there is harmless, and what is there and not noted would stay.
            self._directory.record_cgroup(directory_of(self.plan.cgroup, self._warden.pid))
            self._cgroup = DomainCgroup(self.plan.cgroup, self._warden.pid)
        self._timings.mark("sockets and warden")
        if self.plan.console:
            self.console.listen(self._endpoints.connect(self.plan.console))
        if self._template is not None:
            from cloche.domain.monitor import Monitor

            connection = self._endpoints.connect(self.plan.monitor)
            self._monitor = Monitor(self.reactor, connection, self._template, self.abort)
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
        # Nobody has anything to ask before; and now the machine boots meanwhile.
        self._door = Door(self.reactor, self._directory, self)

    def connect(self) -> socket.socket:
        """Connect to the agent's byte stream."""
        if self._endpoints is None:
            raise DomainError("the domain was not started")
        return self._endpoints.connect(self.plan.control)

    def take_endpoint(self, name: str) -> socket.socket:
        """Return the supervisor's side of a PAIR, once."""
        assert self._endpoints is not None
        return self._endpoints.connect(name)

    def take_monitor(self) -> tuple[socket.socket, bool]:
        """Return the supervisor's side of the VMM's monitor, once, and whether that has been greeted."""
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            return monitor.give_up(), True
        return self.take_endpoint(self.plan.monitor), False

    def watch_console(self, sink: Callable[[bytes], None]) -> None:
        """Hand what the guest says on its console to ``sink`` as it comes."""
        self.console.sink = sink

    # Shares that come and go

    @property
    def sharing(self) -> Sharing:
        """What is shared, and how that is changed."""
        if self._sharing is None:
            from cloche.domain.sharing import Sharing

            self._sharing = Sharing(self)
        return self._sharing

    def mount(self, ident: int, place: bytes, flags: int, source: int, done: Callable[[Done], None]) -> None:
        """Have the warden show the directory behind a descriptor in the tree of a process (``Warden.send_mount``)."""
        assert self._warden is not None
        self._warden.send_mount(self._take_request(done), ident, place, flags, source)

    def unmount(self, ident: int, place: bytes, done: Callable[[Done], None]) -> None:
        """Have the warden take that away again."""
        assert self._warden is not None
        self._warden.send_unmount(self._take_request(done), ident, place)

    def _take_request(self, done: Callable[[Done], None]) -> int:
        self._last_request = (self._last_request + 1) & 0xFFFF_FFFF
        self._requests[self._last_request] = done
        return self._last_request

    # Starting

    def _spawn(self, ident: int, process: ProcessPlan, machine_id: bytes = b"") -> None:
        assert self._warden is not None
        assert self._endpoints is not None
        assert self._directory is not None
        program = open_program(process.executable) if process.executable else None
        complaints = self._complaints[ident] = Complaints(self.reactor)
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
            cgroup = self._cgroup.open(process.name, process.limits)
            fds.append(cgroup)
        spec = SpawnSpec(
            id=ident,
            name=process.name.encode(),
            argv=argv,
            env=process.env,
            jail=own_ids(process.jail, self.plan.ids, self._warden.pid, ident)._replace(
                root=fresh_root(process.jail.root, machine_id, self._directory.path)
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

            raise reasons.gone(self._warden, error, self._name) from None
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

    def verify(self) -> None:
        """Look whether every process has the filters of system calls that its policy asks for, once.

        For the moment when the agent has answered and nothing of the user's has run. Processes that are started anew
        later are the same programs.

        Raises:
            LaunchError: One has not; the domain should be ended.
        """
        if self._verified or self._closed:
            return
        # Those whose start is reported but was not heard of yet.
        self._hear(READ)
        self._verified = True
        try:
            if self._check_filters is not None and "seccomp" not in self.plan.insecure:
                self._check_filters(self.plan, self._pidfds)
        finally:
            self._forget_pidfds()
        self._timings.mark("filters counted")

    def _forget_pidfds(self) -> None:
        while self._pidfds:
            os.close(self._pidfds.popitem()[1])

    def _kill(self, ident: int, signo: int) -> None:
        assert self._warden is not None
        try:
            self._warden.kill(ident, signo)
        except LaunchError as error:
            self.abort(error)

    # What is heard from the domain

    def _hear(self, events: int) -> None:
        del events
        assert self._warden is not None
        try:
            heard = self._warden.receive()
        except LaunchError as error:
            self.abort(error)
            return
        for event in heard:
            if not self._closed:
                self._handle(event)
            elif isinstance(event, Spawned):
                # Reported together with what ended the domain: nobody else closes its descriptor.
                os.close(event.pidfd)

    def _handle(self, event: Event) -> None:
        if isinstance(event, Ready):
            self._timings.mark("warden ready")
        elif isinstance(event, Spawned):
            before = event.pidfd if self._verified else self._pidfds.pop(event.id, None)
            if before is not None:
                os.close(before)
            if not self._verified:
                self._pidfds[event.id] = event.pidfd
            self._timings.mark(f"{self._name(event.id)} started")
            if self._monitor is not None and self._name(event.id) == "vmm":
                self._monitor.started(event.pidfd)
                self._timings.mark("memory filled")
        elif isinstance(event, Done):
            done = self._requests.pop(event.request, None)
            if done is not None:
                done(event)
        elif isinstance(event, Failed):
            from cloche.domain import reasons

            self.abort(reasons.not_started(event, self._name(event.id)))
        else:
            self._process_ended(event)

    def _process_ended(self, event: Exited, *, patient: bool = True) -> None:
        if self._closed:
            return
        from cloche.domain import reasons

        process = self.plan.processes[event.id]
        how = reasons.how(event)
        if event.signal == _SIGKILL and self._cgroup and self._cgroup.was_out_of_memory(process.name):
            assert process.limits is not None
            how = f"was killed by the kernel: it wanted more than the {process.limits.memory >> 20} MiB it may have"
        log.debug(f"{process.name} {how}")
        if process.name.startswith(("fs-", "devices")) and event.status == 0:
            return  # it ends by itself when the VMM has hung up: the VMM's own end says why
        if process.files and event.status == _UNUSABLE:
            self.abort(reasons.unusable(process, self._complaints[event.id].last_words()))
        elif event.id in self._couples:
            couple = self._couples[event.id]
            cause = couple.note(event)
            if cause is not None:
                self._start_again(cause, reasons.how(cause), couple)
        elif process.restarts:
            self._start_again(event, how)
        elif (
            process.essential and self._template and len(self._pidfds) < len(self.plan.processes) and patient
        ):
            # Another one that cannot be started takes the VMM along; that would be the reason, and not the template.
            self.reactor.call_later(_OTHERS_S, lambda: self._process_ended(event, patient=False))
        elif process.essential:
            self.console.drain()
            if process.name == "vmm" and event.status == 0 and (done := self.console.rebooted()) is not None:
                self.abort(reasons.by_program(done))
                return
            said = self._complaints[event.id].last_words() or tuple(self.console.tail())
            self.abort(reasons.ended(event, process, how, said))

    def _start_again(self, event: Exited, how: str, couple: Couple | None = None) -> None:
        """Start a process that has died anew; who talked to it connects to the same socket again.

        With it comes the other one of a ``couple`` of which both have ended.
        """
        from cloche.domain import reasons
        from cloche.domain.restarts import TOO_OFTEN, Restarts

        ident, process = event.id, self.plan.processes[event.id]
        # What it said before somebody killed it explains nothing.
        said = () if event.signal == _SIGKILL else self._complaints[ident].last_words()
        for one in couple.idents if couple else (ident,):
            self._complaints.pop(one).close()
        self._restarts = self._restarts or Restarts()
        if self._peers and process.connections and self._peers.explain(event, process):
            self._try_spawn(ident, process)
            return
        if couple is not None and reasons.is_stranded(event, process):
            self.abort(reasons.stranded(how, said))
            return
        if not self._restarts.may_restart(ident):
            self.abort(reasons.died_often(process, f"{how}, {TOO_OFTEN}", said))
            return
        log.notice(f"{process.name} {how} and is started again" + (f": {said[-1]}" if said else ""))
        if couple is None:
            self._try_spawn(ident, process)
            return
        assert self._endpoints is not None
        self._endpoints.join(couple.endpoint)
        for one in couple.idents:
            if not self._closed:
                self._try_spawn(one, self.plan.processes[one])
        if not self._closed:
            self._endpoints.part(couple.endpoint)

    def _try_spawn(self, ident: int, process: ProcessPlan) -> None:
        try:
            self._spawn(ident, process)
        except (LaunchError, DomainError) as error:
            self.abort(error)

    def _name(self, ident: int) -> str:
        if ident == WARDEN_ID:
            return "the domain"
        return self.plan.processes[ident].name if ident < len(self.plan.processes) else f"process {ident}"

    def _stands_still(self, done: str) -> None:
        """A machine without ACPI cannot be switched off, and nothing but its console says so."""
        from cloche.domain import reasons

        self.abort(reasons.by_program(done))

    def abort(self, error: ClocheError) -> None:
        """End the domain now, as if it had ended by itself for this reason."""
        if not self._closed:
            ended = self.ended
            self.close()
            ended(error)

    def console_tail(self, lines: int = 8) -> list[str]:
        """Return the last lines of the guest's console, made safe to show."""
        return self.console.tail(lines)

    # The end

    def close(self, *, wait: bool = True) -> None:
        """End the domain and remove what it had. May be called twice, and after a failed ``start``.

        The lifeline is cut in any case; ``wait`` also waits until the kernel has ended everything.
        """
        if self._closed:
            return
        self._closed = True
        self._forget_pidfds()
        self.console.drain()
        self.console.close()
        for part in (self._door, self._sharing, self._monitor, self._template, *self._complaints.values()):
            if part is not None:
                part.close()
        if self._warden is not None:
            self.reactor.unregister(self._warden.fileno())
            self._warden.close()
            if wait:
                self._warden.wait()
        if self._peers is not None:
            self._peers.close()
        while self._files:
            os.close(self._files.popitem()[1])
        if self._endpoints is not None:
            self._endpoints.close()
        if self._directory is not None:
            self._directory.close()


def _raise(error: ClocheError) -> None:
    raise error
