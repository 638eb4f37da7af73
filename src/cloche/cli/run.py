"""``cloche run`` (layer 6): one program, one domain, the caller's own streams and terminal."""

from __future__ import annotations

import gc
import os
import sys

from cloche import log
from cloche.domain.domain import Domain
from cloche.domain.launcher import Launcher
from cloche.domain.prepare import give_notices, prepare_plan, wants_template
from cloche.domain.programs import Programs
from cloche.domain.request import build_request
from cloche.domain.states import State
from cloche.domain.timings import Timings
from cloche.errors import ClocheError, TimeLimitError
from cloche.host import rundir
from cloche.host.facts import collect_facts
from cloche.host.reactor import Reactor
from cloche.host.text import escape_untrusted
from cloche.host.tools import require_own_binary
from cloche.host.warden import Warden
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO

    from cloche.cli.parser import Parsed
    from cloche.cli.terminal import Terminal
    from cloche.guest.job import Job
    from cloche.guest.pumps import InputPump
    from cloche.guest.session import AgentSession
    from cloche.guest.streams import Sender
    from cloche.host.confine import Errand
    from cloche.host.profile_lock import Hold
    from cloche.host.reactor import Timer
    from cloche.model.plan import LaunchPlan
    from cloche.model.request import RunRequest


def show_plan(parsed: Parsed) -> int:
    """Print what would be started."""
    from cloche.cli.profile_choice import choose_profile
    from cloche.domain.describe import describe_plan
    from cloche.drivers.registry import find_driver

    facts = collect_facts(remember=False)
    parsed.values["profile"] = choose_profile(parsed)
    request = build_request(parsed.values, parsed.operands)
    plan = prepare_plan(request, facts, dry=True)
    sys.stdout.write(describe_plan(plan, find_driver(plan.driver).why_not_saveable(plan, facts)))
    sys.stdout.write(f"pool        {_of_pool(parsed, request)}\n")
    if parsed.settings is not None:
        from cloche.domain.settings import in_toml, list_settings
        from cloche.model.options import Level
        from cloche.model.settings import all_keys

        for line in list_settings(parsed.settings, all_keys()):
            if line.origin.level not in (Level.BUILT_IN, Level.COMMAND):
                sys.stdout.write(
                    f"settings    {line.key} = {in_toml(line.value)} ({line.origin.level}: {line.origin})\n"
                )
    return 0


def _of_pool(parsed: Parsed, request: RunRequest) -> str:
    """Return in a clause whether the run would take a machine of the pool."""
    from cloche.cli.pooled import why_not_here
    from cloche.host import pool
    from cloche.plan.pool import fitting_keys, why_not

    if not pool.is_set():
        return "not set (`cloche pool set`)"
    reason = why_not_here(parsed) or why_not(request)
    if reason:
        return f"no: {reason}"
    keys = fitting_keys(request, is_root=os.geteuid() == 0)
    mine = [pool.own_key(key) for key in keys]
    count = sum(member.state == pool.READY and member.key in mine for member in pool.members())
    return f"yes, {count} wait that can take it" if count else "no: none waits that could take it"


def prepare_run(
    parsed: Parsed,
    mask: int,
    warden: Warden,
    terminal: Terminal,
    request: RunRequest | None,
    *,
    hold: Hold | None = None,
) -> Run:
    """Make the plan of a run. ``mask`` is the program's umask; the warden is the run's as soon as this returns.

    The request is made unless it was; ``hold`` is what it has of a profile.
    """
    timings = Timings()
    timings.mark("python")
    request = request or build_request(parsed.values, parsed.operands)
    plan = prepare_plan(request, collect_facts()._replace(umask=mask))
    timings.mark("plan")
    return Run(parsed, request, plan, timings, warden, terminal=terminal, hold=hold)


def _open_trace(parsed: Parsed) -> TextIO | None:
    path = parsed.get("timings")
    if not isinstance(path, str):
        return None
    from cloche.domain.trace import open_trace

    return open_trace(path)


class Run:
    """The state of one ``run``: a domain, its program, and what the caller's signals and terminal do to them.

    Attributes:
        wants_refill: Whether the pool is to be filled when it has ended.
    """

    def __init__(
        self,
        parsed: Parsed,
        request: RunRequest,
        plan: LaunchPlan,
        timings: Timings,
        warden: Warden,
        *,
        terminal: Terminal,
        hold: Hold | None = None,
    ) -> None:
        self._trace = _open_trace(parsed)
        self._parsed = parsed
        self._request = request
        self._plan = plan
        self._timings = timings
        self.wants_refill = False
        self._reactor = Reactor()
        self._warden: Warden | None = warden
        self._processes: Launcher | None = None
        self._errand: Errand | None = None
        self._domain = Domain(self._reactor, plan, timings, self._launcher, boot=self._boot_plan)
        self._programs = Programs(self._domain)
        self._programs.on_last = self._end
        self._terminal = terminal
        self._hold = hold
        self._job: Job | None = None
        self._status: int | None = None
        self._error: ClocheError | None = None
        self._time_limit: Timer | None = None
        self._ending = False

    def _launcher(self, reactor: Reactor, plan: LaunchPlan, timings: Timings) -> Launcher:
        warden, self._warden = self._warden, None
        if warden is None:
            # The first went with the machine that did not come up; so did the keeper of the terminal.
            keeps = self._terminal.wanted and os.isatty(self._terminal.keys)
            warden = Warden.start(require_own_binary("cloche-warden"), keeper=keeps)
            self._terminal.change_keeper(warden.keeper)
        self._processes = Launcher(reactor, plan, timings, warden)
        return self._processes

    def _boot_plan(self) -> LaunchPlan:
        facts = collect_facts()._replace(umask=self._plan.command.umask)
        self._plan = prepare_plan(self._request._replace(cold=True), facts)
        return self._plan

    def run(self) -> int:
        """Start the domain, wait for the program, and return its status."""
        if self._terminal.wanted:
            log.set_sink("notice", self._say)
            if self._parsed.get("verbose"):
                log.set_sink("debug", self._say)
        # Asked for while the guest is being set up: it starts a round trip earlier.
        self._domain.on_ready = self._begin
        if self._hold is not None:
            self._domain.on_attached = self._hold.secured
        self._domain.on_end = self._fail
        console = _ConsolePrinter()
        if self._request.boot_log:
            self._domain.watch_console(console.feed)
        if self._request.agent_log:
            self._domain.on_agent_log = lambda level, text: log.notice(f"agent: {text}")
        try:
            self._terminal.watch_signals(self._reactor, self._signal, self._resized)
            self._domain.start()
            # Now that the machine boots, and this process has time.
            give_notices(self._plan)
            if self._hold is not None:
                self._hold.began(self._domain.ident)
            gc.enable()  # the machine boots now, and this process has time
            rundir.sweep()
            self._reactor.run_until(lambda: self._status is not None or self._error is not None)
        finally:
            self._terminal.restore()
            self._domain.close(wait=False)
            if self._hold is not None:
                self._hold.release(is_clean=self._domain.is_settled)
            self._reactor.close()
            console.finish()
        if self._parsed.get("timings"):
            self._timings.mark("ended")
            for line in self._timings.waterfall():
                log.notice(line)
        if self._trace is not None:
            self._write_trace(self._trace)
        if self._error is not None:
            raise self._error
        assert self._status is not None
        if self._errand is not None:
            self._errand.go()
        return self._status

    def _write_trace(self, file: TextIO) -> None:
        from cloche.domain.trace import write_trace

        try:
            write_trace(file, self._timings.marks)
        except ClocheError as error:
            # The program has run: its status is worth more than its trace.
            log.notice(error.message)

    def _say(self, line: str) -> None:
        """Write a line of cloche's own; in raw mode the terminal needs to be told to go back to its left edge."""
        end = b"\r\n" if self._terminal.is_raw else b"\n"
        try:
            os.write(2, f"cloche: {line}".encode("utf-8", "backslashreplace") + end)
        except OSError:
            return  # a notice that nobody can read is no reason to end the program

    def _begin(self) -> None:
        """The agent has answered: ask for the program, and give up what is not needed any more before it runs."""
        self._open()
        if self.wants_refill or self._wants_template():
            from cloche.host.confine import Errand

            self._errand = Errand(self._prepare_next)
        assert self._processes is not None
        self._processes.confine()

    def _wants_template(self) -> bool:
        return wants_template(self._plan, self._request)

    def _prepare_next(self) -> None:
        """Have made what the next run will want to go on from."""
        if self._wants_template():
            from cloche.domain.template import make_in_background

            make_in_background(self._request)
        if self.wants_refill:
            from cloche.domain.filling import fill_in_background

            fill_in_background()

    def _open(self) -> None:
        from functools import partial

        from cloche.guest.pumps import InputPump, OutputPump

        terminal = self._terminal.size() if self._terminal.wanted else None
        beside = self._terminal.beside
        if not beside:
            self._take_terminal()
        self._job = self._domain.execute(
            self._plan.command,
            stdin=0,
            stdout=1,
            stderr=_stderr(terminal=terminal is not None),
            terminal=terminal,
            keys=self._make_keys if beside else None,
        )
        self._programs.began(self._job)
        stdin, stdout = self._job.stdin, self._job.stdout
        assert isinstance(stdin, InputPump)
        assert isinstance(stdout, OutputPump)
        if not terminal:
            # Whoever reads from the program learns at once that it has closed its end.
            stdout.on_close = partial(_let_go, 1)
            if os.isatty(0):
                from cloche.guest.keys import in_lines

                stdin.may_read = in_lines
        elif beside:
            from cloche.guest.keys import CookedWriter

            stdout.write_through(partial(CookedWriter, is_raw=lambda: self._terminal.is_raw))
        if not terminal or beside:
            # So does whoever writes to it.
            stdin.on_close = partial(_let_go, 0)
        self._job.on_started = lambda job: self._timings.mark("program started")
        self._job.on_stopped = self._stopped
        self._job.on_done = self._done
        if self._plan.timeout_s is not None:
            self._time_limit = self._reactor.call_later(self._plan.timeout_s, self._out_of_time)

    def _take_terminal(self) -> None:
        self._terminal.take(self._reactor, self._resized)

    def _make_keys(self, session: AgentSession, sender: Sender) -> InputPump:
        from cloche.guest.keys import KeysPump

        return KeysPump(session, sender, self._terminal.keys, self._take_terminal)

    def _done(self, job: Job) -> None:
        self._timings.mark("program ended")
        if self._time_limit is not None:
            self._time_limit.cancel()
        if job.failure is not None:
            from cloche.domain.outcome import failure

            self._fail(failure(job, self._plan.command))
            return
        assert job.exited is not None
        status = job.status
        if job.exited.oom:
            log.notice(
                f"the program was ended because the machine's {self._plan_memory()} of memory were used up; "
                "--memory gives it more"
            )
        broken = job.output_error()
        if broken is not None:
            error = ClocheError(
                f"cannot write the program's output: {broken.strerror}",
                hint="Look at where its output goes to: a full disk, or a device that is gone.",
            )
            self._domain.finish(lambda: self._fail(error))
            return
        if status and self._request.shell_on_failure and self._open_shell(status):
            return
        self._over(job)

    def _over(self, main: Job) -> None:
        """The program has ended; its machine goes with it, unless others have joined."""
        self._programs.over(main)
        if self._programs.count:
            self._terminal.restore()
        if self._programs.strangers:
            log.notice(
                f"the program has ended; {self._programs.strangers} that joined it still run in its machine, "
                f"which goes with the last of them (`cloche stop {self._domain.ident}` ends it)"
            )

    def _plan_memory(self) -> str:
        return f"{self._plan.machine.memory_mib} MiB" if self._plan.machine else "share"

    def _open_shell(self, status: int) -> bool:
        """Give the user a shell in the guest that has just failed; the run then ends with the program's status."""
        if not self._terminal.wanted:
            log.notice("--shell-on-failure needs a terminal")
            return False
        log.notice(f"the program ended with status {status}; this shell runs in its machine, `exit` ends it")
        command = self._plan.command._replace(argv=(b"/bin/sh", b"-i"), strace=False, program=b"")
        self._terminal.make_raw()
        shell = self._domain.execute(
            command, stdin=self._terminal.keys, stdout=1, terminal=self._terminal.size()
        )
        main, self._job = self._job, shell
        assert main is not None
        shell.on_done = lambda job: self._over(main)
        return True

    def _end(self) -> None:
        # From now on a signal does not wait for shares to be written back: it ends the run.
        self._ending = True

        def ended() -> None:
            self._status = self._programs.status

        self._domain.finish(ended, wait=False)

    def _fail(self, error: ClocheError) -> None:
        if self._error is None:
            self._error = error

    def _out_of_time(self) -> None:
        error = TimeLimitError(
            f"the program was ended after its time limit of {self._plan.timeout_s:g} seconds",
            hint="--timeout gives it more.",
        )
        self._domain.finish(lambda: self._fail(error))

    # The caller's signals and terminal

    def _signal(self, signo: int) -> None:
        """Pass a signal on; one that comes before the program runs ends the run."""
        runs = self._programs.status is None and self._domain.state in (State.RUNNING, State.STOPPING)
        if self._job is not None and runs and not self._ending:
            self._job.signal(signo)
        elif self._status is None:
            self._status = 128 + signo
            self._reactor.stop()

    def _resized(self) -> None:
        if self._job is not None and self._terminal.wanted:
            self._job.resize(*self._terminal.size())

    def _stopped(self, job: Job, signo: int) -> None:
        """The program was stopped (Ctrl-Z): stop as well, as a program of the host would, and go on with it."""
        self._terminal.stop_self(signo)
        job.signal(18)  # SIGCONT
        if self._terminal.taken:
            self._take_terminal()


def _let_go(fd: int) -> None:
    """Put /dev/null in the place of a standard stream: its number must not become another file's."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, fd)
    os.close(null)


def _stderr(*, terminal: bool) -> int | None:
    """Return where the program's stderr goes: 2, or what stdout is when both lead to the same place (`2>&1`).

    One stream then keeps their order. On a terminal, stderr is a stream of its own only when it was sent elsewhere.
    """
    from cloche.guest.session import STDOUT

    out, err = os.fstat(1), os.fstat(2)
    same = (out.st_dev, out.st_ino) == (err.st_dev, err.st_ino)
    if terminal:
        return None if same or os.isatty(2) else 2
    return STDOUT if same else 2


class _ConsolePrinter:
    """Shows the guest's console line by line, escaped: these are the guest's words, not the program's output."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> None:
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()[-4096:]
        for line in lines:
            self._show(line)

    def finish(self) -> None:
        """Show what came after the last end of a line: a guest may stop in the middle of one."""
        if self._rest:
            self._show(self._rest)
            self._rest = b""

    def _show(self, line: bytes) -> None:
        text = line.removesuffix(b"\r")
        log.notice(f"boot: {escape_untrusted(text, 400)}")
