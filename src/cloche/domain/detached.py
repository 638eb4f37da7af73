"""The supervisor of a domain that nobody waits for (layer 5): from the plan to what is kept of its end.

Whoever has started it is told once, over a socket: that the program has been started, or why not. That one's death
before ends the start; afterwards nothing of the caller's is needed.
"""

from __future__ import annotations

import time

from cloche import log
from cloche.domain.control import wire
from cloche.domain.domain import Domain
from cloche.domain.launcher import Launcher
from cloche.domain.outlet import Outlet
from cloche.domain.prepare import give_notices, prepare_plan, wants_template
from cloche.domain.programs import Programs
from cloche.domain.states import State
from cloche.errors import ClocheError, DomainError, TimeLimitError
from cloche.host import records, rundir
from cloche.host.outlog import STDERR, STDOUT, LogWriter
from cloche.host.reactor import READ, Reactor
from cloche.host.tools import require_own_binary
from cloche.host.warden import Warden
from cloche.lean import signal
from cloche.model.request import RunRequest
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.domain.snapshot import Description, Outline
    from cloche.domain.snapshotting import Again
    from cloche.domain.timings import Timings
    from cloche.guest.job import Job
    from cloche.guest.session import Sink, Source
    from cloche.host.profile_lock import Hold
    from cloche.host.reactor import Timer
    from cloche.lean import socket
    from cloche.model.facts import HostFacts
    from cloche.model.plan import LaunchPlan

#: What a signal to the supervisor itself gives programs to end, in seconds.
GRACE_S = 10.0
#: What is said to a supervisor that was started before there was a snapshot to go on from, when there is one.
GO_ON = b"go on"
_MIB = 1 << 20
_DEFAULT_SIZE = (24, 80)


class Options(Record):
    """What belongs to being detached.

    Attributes:
        terminal: Whether the program has a terminal.
        interactive: Whether its input is kept open, for whoever attaches.
        log_mib: How large its log may become, in MiB.
    """

    terminal: bool = False
    interactive: bool = False
    log_mib: int = 16


class Begun(Record):
    """The answer to a start: the program runs, in the domain of this identity and name.

    Attributes:
        wants_template: Whether it would be worth making a template for the next one.
    """

    ident: str
    name: str
    wants_template: bool


class Detached:
    """One such domain. ``caller`` is the socket of whoever has started it; ``begun`` is called when it is answered.

    A fork that was begun early waits for the word that its snapshot is there: with its processes started, or, where
    these have copies of disks, before anything of it is planned.
    """

    def __init__(
        self,
        request: RunRequest | Again,
        facts: HostFacts,
        options: Options,
        caller: socket.socket,
        begun: Callable[[], None],
    ) -> None:
        self._facts = facts
        self._options = options
        self._caller = caller
        self._begun = begun
        self._reactor = Reactor()
        self._hold: Hold | None = None
        self._again = None if isinstance(request, RunRequest) else request
        self._outline: Outline | None = None
        if isinstance(request, RunRequest) and request.layer is not None:
            from cloche.domain.profiled import take

            request, self._hold = take(request)
        # It needs no plan and comes up while one is made.
        self._warden: Warden | None = Warden.start(require_own_binary("cloche-warden"))
        try:
            self._request, self._plan, self._saved = self._prepare(request)
        except BaseException:
            self._warden.close()
            if self._hold is not None:
                self._hold.release(is_clean=self._hold.is_clean)
            raise
        give_notices(self._plan)
        self._processes: Launcher
        if self._again is None:
            self._domain = Domain(self._reactor, self._plan, launcher=self._launcher, boot=self._boot_plan)
        else:
            channel = self._saved.channel if self._saved else None
            self._domain = Domain(self._reactor, self._plan, launcher=self._launcher, channel=channel)
            self._domain.on_adopt = self._ends
            self._domain.on_open = self._goes_on
        self._programs = Programs(self._domain)
        self._programs.detached = True
        self._outlet: Outlet | None = None
        self._kept: records.Kept | None = None
        self._time_limit: Timer | None = None
        self._is_answered = False
        self._over = False

    def _prepare(self, what: RunRequest | Again) -> tuple[RunRequest, LaunchPlan, Description | None]:
        if isinstance(what, RunRequest):
            return what, prepare_plan(what, self._facts), None
        from cloche.domain.snapshot import plan_machine, prepare, read_beginning

        if what.early:
            known = read_beginning(what.directory)
            if known.is_enough:
                self._outline = known.outline
                plan = plan_machine(what.directory, known, self._facts, what.name)
                return known.outline.request, plan, None
            if not self._caller.recv(len(GO_ON)):
                raise DomainError("the domain that was to be forked was not saved")
        plan, saved = prepare(what.directory, self._facts, what.name, whole=what.whole)
        return saved.request, plan, saved

    def _launcher(self, reactor: Reactor, plan: LaunchPlan, timings: Timings) -> Launcher:
        warden, self._warden = self._warden, None
        self._processes = Launcher(reactor, plan, timings, warden)
        return self._processes

    def _boot_plan(self) -> LaunchPlan:
        self._plan = prepare_plan(self._request._replace(cold=True), self._facts)
        return self._plan

    def run(self) -> None:
        """Start the domain and return when it has ended.

        Raises:
            ClocheError: It could not be started; the caller has not been answered.
        """
        domain = self._domain
        domain.on_ready = self._begin
        if self._hold is not None:
            domain.on_attached = self._hold.secured
        domain.on_end = self._failed
        domain.life.changed = self._changed
        self._programs.on_last = lambda: domain.finish(self._finished)
        self._reactor.register(self._caller.fileno(), READ, self._told)
        for signo in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(signo) is not signal.SIG_IGN:
                self._reactor.add_signal(signo, self._signal)
        try:
            domain.start(greet=self._outline is None)
            if self._hold is not None:
                self._hold.began(domain.ident)
            rundir.sweep()
            records.prune(frozenset(one.ident for one in rundir.find_running()))
            self._reactor.run_until(lambda: self._over)
        finally:
            domain.close()
            if self._hold is not None:
                self._hold.release(is_clean=domain.is_settled)
            if self._outlet is not None:
                self._outlet.close()
            self._reactor.close()
        if not self._is_answered:
            raise domain.error or DomainError("the program ended before it was started")

    def _begin(self) -> None:
        """The agent has answered: ask for the program, and give up what is not needed any more before it runs."""
        self._open()
        self._processes.confine()

    def _open(self) -> None:
        if self._saved is not None:
            self._go_on(self._saved)
            return
        options = self._options
        outlet = self._make_outlet(options.interactive or options.terminal, has_terminal=options.terminal)
        job = self._domain.execute(
            self._plan.command,
            stdin=outlet.source if outlet.takes_input else None,
            stdout=outlet.sink(STDOUT),
            stderr=None if options.terminal else outlet.sink(STDERR),
            terminal=_DEFAULT_SIZE if options.terminal else None,
        )
        outlet.job = job
        self._programs.began(job)
        job.on_started = self._started
        job.on_done = self._done
        if self._plan.timeout_s is not None:
            self._time_limit = self._reactor.call_later(self._plan.timeout_s, self._out_of_time)

    def _ends(self, number: int) -> tuple[Source, Sink, Sink]:
        """Say what a saved program's streams are connected to now: the main one's to the log, others' to nothing."""
        assert self._saved is not None
        if number != self._saved.main:
            return None, None, None
        state = next(job for job in self._saved.channel.jobs if job.number == number)
        outlet = self._make_outlet(self._saved.takes_input or state.terminal, has_terminal=state.terminal)
        source = outlet.source if outlet.takes_input else None
        return source, outlet.sink(STDOUT), outlet.sink(STDERR)

    def _go_on(self, saved: Description) -> None:
        """The saved machine's agent has answered: what ran in it runs."""
        self._programs.lasting = saved.lasting
        for job in self._domain.adopted:
            if job.number == saved.main:
                if self._outlet is not None:
                    self._outlet.job = job
                self._programs.began(job)
                job.on_done = self._done
            else:
                self._programs.joined(job)
                job.on_done = self._programs.over

    def _goes_on(self) -> None:
        """It is another guest now. What was paused has not run for that, and stays so."""
        assert self._saved is not None
        if self._saved.paused:
            self._domain.pausing.pause(self._stands_still)
        else:
            self._started(None)

    def _stands_still(self, error: ClocheError | None) -> None:
        if error is not None:
            self._domain.abort(error)
            return
        called = self._domain.name or self._domain.ident
        log.notice(f"{called} is paused, as what was saved: `cloche resume {called}` lets it go on")
        self._started(None)

    def _make_outlet(self, takes_input: bool, *, has_terminal: bool) -> Outlet:
        domain, options = self._domain, self._options
        self._kept = records.Kept(domain.ident, domain.name, self._plan.command.argv, time.time())
        records.create(self._kept)
        self._outlet = Outlet(
            LogWriter(self._kept.directory, options.log_mib * _MIB),
            takes_input=takes_input,
            has_terminal=has_terminal,
        )
        self._programs.outlet = self._outlet
        return self._outlet

    def _started(self, job: Job | None) -> None:
        del job
        if self._outlet is None:
            # A sandbox of the API has no program that would be its own.
            self._make_outlet(False, has_terminal=False)
        assert self._outlet is not None
        self._is_answered = True
        wanted = wants_template(self._plan, self._request)
        begun = Begun(self._domain.ident, self._domain.name, wanted)
        self._reactor.unregister(self._caller.fileno())
        try:
            self._caller.send(wire.encode_answer(begun))
        except OSError:
            log.debug("whoever has started it has gone in this very moment")
        self._caller.close()
        log.set_sink("notice", self._outlet.say)
        log.set_sink("debug", None)
        self._begun()

    def _done(self, job: Job) -> None:
        if self._time_limit is not None:
            self._time_limit.cancel()
        if job.failure is not None:
            from cloche.domain.outcome import failure

            self._domain.abort(failure(job, self._plan.command))
            return
        if job.exited is not None and job.exited.oom:
            log.notice(
                "the program was ended because the machine's memory was used up; --memory gives it more"
            )
        if self._outlet is not None and self._outlet.visitor is not None:
            self._outlet.visitor.ended(job)
        self._programs.over(job)

    def _told(self, events: int) -> None:
        """Whoever waits for the start says that the snapshot is there, or has gone."""
        del events
        outline, self._outline = self._outline, None
        try:
            if outline is not None and self._caller.recv(len(GO_ON)):
                self._use(outline)
                return
        except ClocheError as error:
            self._domain.abort(error)
            return
        except ConnectionResetError:
            pass
        self._reactor.unregister(self._caller.fileno())
        self._domain.abort(DomainError("whoever has started the domain has gone before its program began"))

    def _use(self, outline: Outline) -> None:
        """Go on from the snapshot, with the processes that were started for it."""
        from cloche.domain.snapshot import check_host, complete, read

        assert self._again is not None
        saved = read(self._again.directory)
        if saved.outline != outline:
            raise DomainError("the domain was changed while it was forked", hint="Fork it once more.")
        check_host(saved)
        self._saved, self._plan = saved, complete(self._plan, saved)
        self._processes.go_on(self._plan)
        self._domain.go_on(self._plan, saved.channel)

    def _signal(self, signo: int) -> None:
        if self._domain.state in (State.RUNNING, State.PAUSED, State.STOPPING):
            self._programs.stop(GRACE_S)
        else:
            self._domain.abort(DomainError(f"the supervisor got signal {signo} while it was starting"))

    def _out_of_time(self) -> None:
        limit = self._plan.timeout_s
        self._domain.error = TimeLimitError(
            f"the program was ended after its time limit of {limit:g} seconds",
            hint="--timeout gives it more.",
        )
        self._domain.finish(self._finished)

    def _failed(self, error: ClocheError) -> None:
        del error  # the domain keeps it
        self._finished()

    def _finished(self) -> None:
        self._over = True

    def _changed(self) -> None:
        """Put down how it ends while its run directory is still there: who waits for that to go finds it written."""
        if self._domain.state is not State.ENDED or self._kept is None:
            return
        if not self._is_answered:
            records.remove(self._kept.ident)
            return
        error, status = self._domain.error, self._programs.status
        if status is None and error is not None:
            status = int(error.exit_code)
        kept = self._kept._replace(
            name=self._domain.name or self._kept.name,
            ended=time.time(),
            status=status,
            reason=error.message if error is not None else "",
        )
        try:
            records.write(kept)
        except OSError as failure:
            log.debug(f"how the domain ended cannot be kept: {failure.strerror}")


def serve(
    request: RunRequest | Again,
    facts: HostFacts,
    options: Options,
    caller: socket.socket,
    begun: Callable[[], None],
) -> None:
    """Be the supervisor of such a domain to its end. What keeps it from starting is told to ``caller``."""
    try:
        Detached(request, facts, options, caller, begun).run()
    except ClocheError as error:
        if caller.fileno() < 0:
            return
        try:
            caller.send(wire.encode_failure(error))
        except OSError:
            log.debug("whoever has started it has gone, and with it who could be told")
        caller.close()
