"""Carrying out a plan (layer 5): sockets, the warden, the jailed processes, and their end.

The order is written once, here: run directory, sockets, warden, processes in the plan's order. All of it is sent off
without waiting for answers in between; what fails is reported when the answer comes. The end is one step: the warden
is told to go, and the kernel takes everything in its namespace with it.
"""

from __future__ import annotations

import os

from cloche.domain.machine import Machine
from cloche.errors import DomainError, LaunchError
from cloche.host.reactor import READ
from cloche.host.rundir import RunDirectory
from cloche.host.tools import require_own_binary
from cloche.host.warden import WARDEN_ID, Done, Failed, Ready, Spawned, Warden
from cloche.model.jail import IDS_PER_DOMAIN
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from cloche.domain.console import Console
    from cloche.domain.control.door import Door
    from cloche.domain.monitor import TemplateWork
    from cloche.domain.programs import Programs
    from cloche.domain.sharing import GuestAnswer, Sharing
    from cloche.domain.timings import Timings
    from cloche.drivers.contract import Control
    from cloche.errors import ClocheError
    from cloche.guest.channel import ChannelState
    from cloche.host.cgroups import DomainCgroup
    from cloche.host.reactor import Reactor
    from cloche.host.warden import Event
    from cloche.model.guest import Step
    from cloche.model.plan import LaunchPlan


#: Processes of the machine that comes after the present one are numbered from here on, and the other way round.
HALF = IDS_PER_DOMAIN // 2


class Launcher:
    """The processes of one domain.

    Attributes:
        reactor: What drives it.
        machine: What runs in it.
        timings: Where it is noted when something happened.
        ended: Called once, with an error that says why the domain ended by itself.
        ask_guest: Does steps in the guest, after a sync if that is asked for, and calls back with the answer.
        ask_paused: Calls back with whether it is paused, and its programs stand still for as long; or why it cannot be
            saved as it is.
        ask_channel: Calls back with all that is known of the conversation with the agent, or why that is nothing.
        ask_hold: Has nothing more taken from the channel, and calls back when that is so; or has that end.
        is_remote: Whether it works for a program that uses the API and has the guest to itself.
        ask_programs: Where it does: passes a request on to it, and calls back with the packet of the answer.
        hand_over: Likewise: gives it a request, the process id of who asks, the connection and the descriptors.
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
        self.machine = Machine(reactor, plan, timings, template)
        self.machine.ended = self.abort
        self.ended: Callable[[ClocheError], None] = _raise
        self.ask_guest: Callable[[tuple[Step, ...], bool, Callable[[GuestAnswer], None]], None]
        self.ask_paused: Callable[[Callable[[bool], None], Callable[[ClocheError], None]], None]
        self.ask_channel: Callable[[Callable[[ChannelState], None], Callable[[ClocheError], None]], None]
        self.ask_hold: Callable[[bool, Callable[[], None]], None]
        self.ask_programs: Callable[[bytes, Callable[[bytes], None]], None]
        self.hand_over: Callable[[bytes, int, list[int]], None]
        self.is_remote = False
        self.programs: Programs | None = None
        self.reactor = reactor
        self.timings = timings
        self._warden = warden
        self._directory: RunDirectory | None = None
        self._machines = [self.machine]
        self._door: Door | None = None
        self._sharing: Sharing | None = None
        self._requests: dict[int, Callable[[Done], None]] = {}
        self._last_request = 0
        self._generation = 0
        self._cgroup: DomainCgroup | None = None
        self._closed = False

    @property
    def plan(self) -> LaunchPlan:
        """What its machine was made of."""
        return self.machine.plan

    @property
    def console(self) -> Console:
        """What its guest says."""
        return self.machine.console

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
        self.machine.prepare()
        self._directory = RunDirectory.create(self.plan.name)
        # The warden needs nothing of the others: it comes up while they are made.
        self._warden = self._warden or Warden.start(require_own_binary("cloche-warden"))
        self._directory.record_warden(self._warden.pid, self.plan.insecure)
        self.reactor.register(self._warden.fileno(), READ, self._hear)
        if self.plan.cgroup:
            from cloche.host.cgroups import DomainCgroup, directory_of

            # Noted first: what is noted and not there is harmless, and what is there and not noted would stay.
            self._directory.record_cgroup(directory_of(self.plan.cgroup, self._warden.pid))
            self._cgroup = DomainCgroup(self.plan.cgroup, self._warden.pid)
        self.machine.start(self._warden, self._directory, self._cgroup)
        # Nobody has anything to ask before; and now the machine boots meanwhile.
        from cloche.domain.control.door import Door

        self._door = Door(self.reactor, self._directory, self)

    def go_on(self, plan: LaunchPlan) -> None:
        """Load what the machine goes on from, which was not there when it was started. It is the machine of ``plan``.

        Raises:
            TemplateError: It cannot be used.
        """
        assert self.machine.restore is not None
        assert plan.template is not None
        self.machine.plan = plan
        self.machine.restore.go_on(plan.template.checksum)

    def connect(self) -> socket.socket:
        """Connect to the agent's byte stream."""
        return self.machine.connect()

    def take_endpoint(self, name: str) -> socket.socket:
        """Return the supervisor's side of a PAIR, once."""
        return self.machine.take_endpoint(name)

    @property
    def control(self) -> Control:
        """How its machine is paused, resumed and saved."""
        return self.machine.control

    def watch_console(self, sink: Callable[[bytes], None]) -> None:
        """Hand what the guest says on its console to ``sink`` as it comes."""
        self.console.sink = sink

    def verify(self) -> None:
        """See ``Machine.verify``.

        Raises:
            LaunchError: A process has not the filters that its policy asks for; the domain should be ended.
        """
        # Those whose start is reported but was not heard of yet.
        if not self._closed:
            self._hear(READ)
        self.machine.verify()

    def confine(self) -> None:
        """Give up, for good, the system calls that a supervisor never makes once its machine has come up.

        For whoever keeps this domain and no other. A machine that has not come up may need another warden.

        Raises:
            LaunchError: That cannot be done; the domain should be ended.
        """
        if "seccomp" not in self.plan.insecure:
            # Imported now: the guest is being set up, and this process has time.
            from cloche.host.confine import confine

            confine()

    # Shares that come and go

    def in_turn(
        self,
        work: Callable[[Callable[[], None], Callable[[ClocheError], None]], None],
        done: Callable[[], None],
        fail: Callable[[ClocheError], None],
    ) -> None:
        """Do something while nothing else changes shares or machine (``Sharing.in_turn``)."""
        self.sharing.in_turn(work, done, fail)

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

    # One machine after another

    def add(self, machine: Machine) -> None:
        """Start another machine beside the present one.

        Raises:
            DomainError: Processes of an earlier one have not ended yet.
            HostError, LaunchError: It cannot be started.
        """
        assert self._warden is not None
        assert self._directory is not None
        self._machines = [one for one in self._machines if one is self.machine or not one.is_gone]
        taken = {number for one in self._machines for number in one.numbers}
        first = next((first for first in (0, HALF) if first not in taken), None)
        if first is None:
            raise DomainError(
                "an earlier machine of the domain has not ended yet", hint="Try again in a moment."
            )
        self._machines.append(machine)
        self._generation += 1
        machine.start(self._warden, self._directory, self._cgroup, first, f"{self._generation}-")

    def change(self, old: Machine, new: Machine) -> None:
        """Go on with another machine, and end the present one."""
        self.machine = new
        new.ended = self.abort
        new.console.sink = old.console.sink
        if self._sharing is not None:
            self._sharing.moved()
        self.end(old)

    def end(self, machine: Machine) -> None:
        """End a machine's processes; the domain goes on with the other one."""
        try:
            machine.kill()
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
            self.timings.mark("warden ready")
        elif isinstance(event, Done):
            done = self._requests.pop(event.request, None)
            if done is not None:
                done(event)
        elif isinstance(event, Failed) and event.id == WARDEN_ID:
            from cloche.domain import reasons

            self.abort(reasons.not_started(event, "the domain"))
        else:
            for machine in self._machines:
                if event.id in machine.numbers:
                    machine.handle(event)
                    return

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
        if self._door is not None:
            self._door.close()
        if self._sharing is not None:
            self._sharing.close()
        for machine in self._machines:
            machine.close()
        if self._warden is not None:
            self.reactor.unregister(self._warden.fileno())
            self._warden.close()
            if wait:
                self._warden.wait()
        if self._directory is not None:
            self._directory.close()


def _raise(error: ClocheError) -> None:
    raise error
