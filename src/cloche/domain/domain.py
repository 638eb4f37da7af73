"""One running machine (layer 5), from the plan to its end; its states are those of ``domain.states``.

A machine that goes on from a template and does not get as far as the agent's answer is booted instead, from PLANNED on.
Whatever happens, ``close`` ends it: every process, socket and file of the domain is gone when it returns.
"""

from __future__ import annotations

import errno

from cloche.domain.launcher import Launcher
from cloche.domain.states import Life, State
from cloche.domain.timings import Timings
from cloche.errors import (
    BootTimeoutError,
    ClocheError,
    DomainError,
    MachineEndedError,
    ProtocolError,
    TemplateError,
)
from cloche.host.text import escape_untrusted
from cloche.model.plan import EndpointKind
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.domain.pausing import Pausing
    from cloche.domain.programs import Programs
    from cloche.domain.remote import RemoteLauncher
    from cloche.domain.sharing import GuestAnswer
    from cloche.drivers.contract import Control
    from cloche.guest.channel import ChannelState
    from cloche.guest.job import Job
    from cloche.guest.messages import Ready, SetupDone, SetupFailed
    from cloche.guest.session import AgentSession, Keys, Sink, Source
    from cloche.host.reactor import Reactor, Timer
    from cloche.model.guest import GuestCommand, Step
    from cloche.model.plan import LaunchPlan

#: How long the end of the agent's connection waits for a process's end that explains it, in seconds.
_REASON_TIMEOUT_S = 0.5
#: What may be a template's fault when a machine does not come up from it.
_OF_TEMPLATE = (TemplateError, MachineEndedError, BootTimeoutError, ProtocolError)


class Domain:
    """A domain made from a plan. Everything is driven by the reactor; callbacks come from there.

    ``launcher`` decides whose children the domain's processes are: this process's, or a supervisor's. ``boot`` makes
    the plan of the same domain without its template, for when that turns out to be of no use. ``channel`` is what was
    known of the guest when its machine was saved while it ran, and the machine goes on from that.

    Attributes:
        reactor: What drives it.
        life: Where it is in its life.
        programs: What runs in it, for those who ask its supervisor; None where nobody keeps account of that.
        error: Why it ended, when that was by itself; known before it is ENDED.
        on_adopt: Says what the streams of a program of a saved machine are connected to, given its job.
        adopted: The programs that ran in it.
        is_settled: The disk of its profile has been closed cleanly.
        on_attached: Called when the agent is there and was not told anything yet; an error it raises ends the domain.
        on_ready: Called when the agent has answered: programs can be asked for, and start when the guest is set up.
        on_open: Called when the guest is set up.
        on_end: Called once when the domain ended by itself, with the reason. Not called after ``close``.
        on_agent_log: Called with level and text of the agent's messages.
    """

    def __init__(
        self,
        reactor: Reactor,
        plan: LaunchPlan,
        timings: Timings | None = None,
        launcher: Callable[[Reactor, LaunchPlan, Timings], Launcher | RemoteLauncher] = Launcher,
        *,
        boot: Callable[[], LaunchPlan] | None = None,
        channel: ChannelState | None = None,
    ) -> None:
        self.plan = plan
        self.life = Life()
        self.timings = timings or Timings()
        self.programs: Programs | None = None
        self.error: ClocheError | None = None
        self.on_attached: Callable[[], None] = _nothing
        self.on_ready: Callable[[], None] = _nothing
        self.on_open: Callable[[], None] = _nothing
        self.on_end: Callable[[ClocheError], None] = _raise
        self.on_agent_log: Callable[[int, str], None] | None = None
        self.reactor = reactor
        self._make_launcher = launcher
        self._boot = boot
        self._channel = channel
        self.on_adopt: Callable[[int], tuple[Source, Sink, Sink]] = _nowhere
        self.adopted: list[Job] = []
        self._launcher = launcher(reactor, plan, self.timings)
        self._must_sync = plan.writable_shares
        self.is_settled = self._is_checking = False
        self._console_sink: Callable[[bytes], None] | None = None
        self._session: AgentSession | None = None
        self._deadline: Timer | None = None
        self._pausing: Pausing | None = None

    @property
    def ident(self) -> str:
        """The name of the domain's run directory."""
        return self._launcher.ident

    @property
    def name(self) -> str:
        """What its owner calls it; empty where nobody has named it."""
        return self._launcher.name

    @property
    def agent_version(self) -> str:
        """The agent's version, once it has answered."""
        ready = self._session.ready if self._session else None
        return escape_untrusted(ready.agent_version, 40) if ready else ""

    @property
    def state(self) -> State:
        """Where it is in its life."""
        return self.life.state

    def watch_console(self, sink: Callable[[bytes], None]) -> None:
        """Hand the guest's console output to ``sink`` as it comes (raw bytes of the guest: escape before showing)."""
        self._console_sink = sink

    def start(self, *, greet: bool = True) -> None:
        """Start every process of the plan and greet the agent, unless that is for ``go_on`` to do.

        Raises:
            ClocheError: Something could not be started; the domain has ended.
        """
        self.life.require(State.PLANNED)
        try:
            self._start(greet=greet)
        except _OF_TEMPLATE as error:
            if not self._can_boot_instead(error):
                raise
            self._start_without(error)

    def go_on(self, plan: LaunchPlan, channel: ChannelState) -> None:
        """Greet the agent of a machine whose processes wait, now that what it goes on from is there.

        ``plan`` is that of the same machine, with what is known now.
        """
        self.life.require(State.BOOTING)
        self.plan, self._channel = plan, channel
        self._give_time()
        self._greet()

    def _start(self, *, greet: bool = True) -> None:
        self.life.enter(State.BOOTING)
        try:
            self._launcher.programs = self.programs
            self._launcher.ended = self._ended
            self._launcher.ask_guest = self._ask_guest
            self._launcher.ask_paused = self._ask_paused
            self._launcher.ask_channel = self._ask_channel
            self._launcher.ask_hold = self._ask_hold
            if self._console_sink is not None:
                self._launcher.watch_console(self._console_sink)
            self._launcher.start()
            if greet:
                self._give_time()
                self._greet()
        except _OF_TEMPLATE as error:
            self._release()
            if not self._can_boot_instead(error):
                self.life.enter(State.ENDED)
            raise
        except BaseException:
            self.close()
            raise

    def _can_boot_instead(self, error: ClocheError) -> bool:
        return self.plan.template is not None and self._boot is not None and isinstance(error, _OF_TEMPLATE)

    def _start_without(self, error: ClocheError) -> None:
        """Boot, now that the template has turned out to be of no use; it is removed.

        Raises:
            ClocheError: That could not be started either.
        """
        from cloche import log
        from cloche.host.templates import remove

        template = self.plan.template
        assert template is not None
        assert self._boot is not None
        self._release()
        remove(template.directory.rpartition("/")[2])
        said = f" ({error.detail[-1]})" if error.detail else ""
        log.notice(f"the template was of no use and is removed, this machine boots: {error.message}{said}")
        self.timings.mark("template given up")
        boot, self._boot = self._boot, None
        assert boot is not None
        try:
            self.plan = boot()
        except BaseException:
            self.life.enter(State.ENDED)
            raise
        self._launcher = self._make_launcher(self.reactor, self.plan, self.timings)
        self._start()

    def _greet(self) -> None:
        # Imported while the machine boots, so that it takes no time of the start.
        from cloche.guest.session import AgentSession

        plan = self.plan
        resume = any(e.name == plan.control and e.kind == EndpointKind.LISTEN for e in plan.endpoints)
        self._session = session = AgentSession(self.reactor, self._launcher.connect, resume=resume)
        session.on_attached = self._verify
        session.on_ready = self._ready
        session.on_lost = lambda error: self._lost(session, error)
        session.on_log = self._agent_log
        if self._channel is not None:
            self.adopted = session.adopt(self._channel, self.on_adopt)
            session.on_attached = self._attached_again
        session.attach()
        # Asked for at once: it is sent with the greeting's answer, a round trip earlier than after READY.
        layer = self.plan.layer
        if layer is None or (layer.check is None and layer.renewal is None):
            session.setup(self.plan.setup, self._set_up)
            return
        from cloche.domain.profile_check import Check

        self._is_checking = True
        Check(session, self.plan.setup, layer, self._set_up, self._ended).start(self._checked)

    def _checked(self) -> None:
        self._is_checking = False
        self.timings.mark("disk checked")
        self._give_time()
        self.on_ready()

    def _verify(self) -> None:
        try:
            self._launcher.verify()
            self.on_attached()
        except ClocheError as error:
            self._ended(error)

    def _attached_again(self) -> None:
        """The agent of a saved machine has said long ago that it is ready."""
        self._verify()
        if self.state is State.BOOTING:
            self._ready()

    def _ready(self, ready: Ready | None = None) -> None:
        del ready
        self.timings.mark("agent answers")
        self.life.enter(State.SETTING_UP)
        # A set-up may wait for a disk, and a check takes as long as it takes.
        self._cancel_deadline()
        if not self._is_checking:
            self._give_time()
            self.on_ready()

    def _set_up(self, answer: SetupDone | SetupFailed) -> None:
        from cloche.guest.messages import SetupFailed

        self._cancel_deadline()
        if isinstance(answer, SetupFailed):
            from cloche.domain.mounting import not_set_up

            self._ended(not_set_up(self.plan, answer))
            return
        self.timings.mark("guest set up")
        self.life.enter(State.RUNNING)
        self.on_open()

    def _too_late(self) -> None:
        from cloche.domain import reasons

        self._ended(reasons.too_late(self.plan.boot_timeout_s, tuple(self._launcher.console_tail())))

    def execute(
        self,
        command: GuestCommand,
        *,
        stdin: Source = None,
        stdout: Sink = None,
        stderr: Sink = None,
        terminal: tuple[int, int] | None = None,
        keys: Keys | None = None,
        linger: bool = False,
    ) -> Job:
        """Start a program in the guest (see ``AgentSession.exec``).

        Raises:
            DomainError: The agent has not answered yet, or the domain is paused or has ended.
        """
        if self.state not in (State.SETTING_UP, State.STOPPING):
            self.life.require_running()
        assert self._session is not None
        return self._session.exec(
            command, stdin=stdin, stdout=stdout, stderr=stderr, terminal=terminal, keys=keys, linger=linger
        )

    def set_up(self, steps: tuple[Step, ...], answer: Callable[[SetupDone | SetupFailed], None]) -> None:
        """Do more steps in the guest, before all that is asked for later.

        Raises:
            DomainError: The agent has not answered yet, or the domain has ended.
        """
        self.life.require(State.SETTING_UP, State.RUNNING, State.PAUSED, State.STOPPING)
        assert self._session is not None
        self._session.setup(steps, answer)

    def finish(self, then: Callable[[], None], *, wait: bool = True) -> None:
        """End the domain in an orderly way: what programs wrote to shares is on the host before ``then`` is called."""
        was = self.state
        self.wake()
        if was in (State.RUNNING, State.PAUSED):
            # Whoever asks from here on is told that it has ended.
            self.life.enter(State.STOPPING)
        if (
            was not in (State.RUNNING, State.PAUSED, State.STOPPING)
            or self._session is None
            or not (self._must_sync or self.plan.layer)
        ):
            self.close(wait=wait)
            then()
            return
        from cloche.domain.ending import write_back

        def over(is_settled: bool) -> None:
            self.is_settled = is_settled
            self.close(wait=wait)
            then()

        write_back(self.reactor, self._session, self.plan, sync=self._must_sync, done=over)

    def _ask_guest(self, steps: tuple[Step, ...], sync: bool, answer: Callable[[GuestAnswer], None]) -> None:
        """Do more steps in a guest that runs; for the launcher, which knows when."""
        from cloche.domain.sharing import GuestAnswer
        from cloche.guest.messages import SetupFailed

        if self.state is not State.RUNNING or self._session is None:
            why = b"the domain is paused" if self.state is State.PAUSED else b"the guest is not set up"
            answer(GuestAnswer(errno.EAGAIN, why))
            return
        # What is shared now may be writable.
        self._must_sync = True
        session = self._session

        def answered(said: SetupDone | SetupFailed) -> None:
            if isinstance(said, SetupFailed):
                answer(GuestAnswer(said.errno or errno.EIO, said.what, said.step))
            else:
                answer(GuestAnswer(0))

        if sync:
            session.sync(lambda: session.setup(steps, answered))
        else:
            session.setup(steps, answered)

    def _ask_paused(self, answer: Callable[[bool], None], fail: Callable[[ClocheError], None]) -> None:
        """Tell whether it is paused and its programs stand still; for the launcher, which saves it."""
        try:
            if self.state is State.PAUSED:
                self.pausing.require_frozen()
            else:
                self.life.require_running()
        except ClocheError as error:
            fail(error)
            return
        answer(self.state is State.PAUSED)

    def _ask_channel(
        self, answer: Callable[[ChannelState], None], fail: Callable[[ClocheError], None]
    ) -> None:
        """Tell all that is known of the conversation with the agent; for the launcher, whose machine stands still."""
        if self._session is None:
            fail(DomainError("the domain has not been started"))
            return
        try:
            state = self._session.export()
        except ClocheError as error:
            fail(error)
            return
        answer(state)

    def _ask_hold(self, held: bool, answer: Callable[[], None]) -> None:
        """Take nothing from the machine, or go on with it; for the launcher, which saves it."""
        if self._session is not None:
            self._session.hold(held)
        answer()

    def close(self, *, wait: bool = True) -> None:
        """End the domain now. Harmless when it has ended.

        Without ``wait`` the kernel may still be ending its processes when this returns; nothing can keep them.
        """
        self.life.enter(State.ENDED)
        self._release(wait=wait)

    def _release(self, *, wait: bool = True) -> None:
        self._cancel_deadline()
        if self._session is not None:
            self._session.close()
        self._launcher.close(wait=wait)

    @property
    def control(self) -> Control:
        """How its machine is paused, resumed and saved."""
        return self._launcher.control

    @property
    def pausing(self) -> Pausing:
        """How it stands still and goes on."""
        if self._pausing is None:
            from cloche.domain.pausing import Pausing

            self._pausing = Pausing(self)
        return self._pausing

    def wake(self) -> None:
        """Let a guest that is paused hear what it is told at its end."""
        if self.state is State.PAUSED:
            self.pausing.wake()

    def abort(self, error: ClocheError) -> None:
        """End the domain now, as if it had ended by itself for this reason."""
        self._ended(error)

    def give_up(self, error: ClocheError) -> None:
        """End the domain for this reason; what its programs wrote to a profile is kept."""
        if self.plan.layer is None:
            self._ended(error)
            return
        self.error = error
        self.finish(lambda: self.on_end(error))

    def _lost(self, session: AgentSession, error: ClocheError) -> None:
        if isinstance(error, ProtocolError):
            self._ended(error)
            return

        def end() -> None:
            if self._session is session:
                self._ended(error)

        # The agent goes when its machine goes: the launcher knows why, and will say so in a moment.
        self.reactor.call_later(_REASON_TIMEOUT_S, end)

    def _ended(self, error: ClocheError) -> None:
        if self.state is State.BOOTING and self._can_boot_instead(error):
            try:
                self._start_without(error)
            except ClocheError as second:
                self.on_end(second)
            return
        if self.state is not State.ENDED:
            self.error = error
            if self.state is State.BOOTING and self.plan.machine is not None:
                from cloche.kernel.store import find_damage

                # Its content is looked at now that it did not boot: too dear for every start.
                self.error = find_damage(self.plan.machine.kernel.path) or error
            self.close()
            self.on_end(self.error)

    def _give_time(self) -> None:
        self._deadline = self.reactor.call_later(self.plan.boot_timeout_s, self._too_late)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _agent_log(self, level: int, text: str) -> None:
        if self.on_agent_log is not None:
            self.on_agent_log(level, text)


def _nowhere(job: int) -> tuple[Source, Sink, Sink]:
    """Connect the streams of a program that was saved with nothing."""
    del job
    return None, None, None


def _nothing() -> None:
    """Stand in for a callback nobody set."""


def _raise(error: ClocheError) -> None:
    raise error
