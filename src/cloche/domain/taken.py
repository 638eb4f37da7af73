"""A machine of the pool that somebody has taken (layer 5): from its resumption to the end of the program.

Until it has answered that it goes on and has the shares, nothing of the taker's has begun, and whatever goes wrong
costs the taker nothing but the time. From BEGIN on it is a run like any other.
"""

from __future__ import annotations

import os
from functools import partial

from cloche.domain.control import claiming, talk, wire
from cloche.domain.control.fields import Nothing, load
from cloche.domain.joins import TerminalWatch, end_of, is_null, may_read, obey
from cloche.domain.outcome import failure
from cloche.domain.states import State
from cloche.errors import ClocheError, DomainError, TimeLimitError
from cloche.guest.messages import SetupFailed
from cloche.guest.pumps import InputPump
from cloche.guest.session import STDOUT
from cloche.host.programs import find_program
from cloche.model.request import RunRequest, Share
from cloche.plan.guest import build_command, encode, resolve_user, shown_trees
from cloche.plan.pool import build_fresh_steps
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.domain.claims import Taker
    from cloche.domain.control.talk import Order
    from cloche.domain.launcher import Launcher
    from cloche.domain.programs import Programs
    from cloche.guest.job import Job
    from cloche.guest.messages import SetupDone
    from cloche.host.reactor import Timer
    from cloche.model.facts import HostFacts
    from cloche.model.guest import GuestCommand

#: A machine that has not gone on so long after it was taken is of no use, in seconds. Its taker waits longer.
_PATIENCE_S = 8.0


class Taken:
    """One such machine; ``on_over`` is called when it is of no use any more."""

    def __init__(
        self, launcher: Launcher, programs: Programs, facts: HostFacts, taker: Taker, shares: int
    ) -> None:
        self.on_over: Callable[[], None]
        self._launcher = launcher
        self._domain = programs.domain
        self._programs = programs
        self._facts = facts
        self._taker = taker
        self._expected = shares
        self._shares: list[Share] = []
        self._there = 0
        self._sources: list[tuple[Share, int]] = []
        self._goes_on = self._is_fresh = self._is_ready = False
        self._too_late = launcher.reactor.call_later(_PATIENCE_S, self._is_too_late)
        self._link: talk.Link | None = None
        self._job: Job | None = None
        self._watch: TerminalWatch | None = None
        self._time_limit: Timer | None = None
        self._error: ClocheError | None = None
        self._is_over = False
        programs.on_last = self._last

    def go_on(self) -> None:
        """Resume the machine, and make it its own again."""
        try:
            self._domain.pausing.resume(self._resumed)
            self._domain.set_up(build_fresh_steps(), self._refreshed)
        except ClocheError as error:
            self.fail(error)

    def _is_too_late(self) -> None:
        self.fail(DomainError(f"the machine of the pool did not go on within {_PATIENCE_S:g} seconds"))

    def _resumed(self, error: ClocheError | None) -> None:
        if error is not None:
            self.fail(error)
            return
        self._goes_on = True
        sources, self._sources = self._sources, []
        for share, source in sources:
            self._add(share, source)
        self._settle()

    def _refreshed(self, answer: SetupDone | SetupFailed) -> None:
        if isinstance(answer, SetupFailed):
            self.fail(DomainError("the machine of the pool got no clock or no randomness"))
            return
        self._is_fresh = True
        self._settle()

    def lent(self, lend: claiming.Lend, source: int) -> None:
        """Put a share at its place as soon as the machine goes on."""
        share = Share(lend.source, lend.target, lend.writable)
        self._shares.append(share)
        if self._goes_on:
            self._add(share, source)
        else:
            self._sources.append((share, source))

    def _add(self, share: Share, source: int) -> None:
        def added() -> None:
            os.close(source)
            self._there += 1
            self._settle()

        def failed(error: ClocheError) -> None:
            os.close(source)
            self.fail(error)

        self._launcher.sharing.add(source, share.target, share.writable, added, failed)

    def _settle(self) -> None:
        if self._goes_on and self._is_fresh and self._there == self._expected and not self._is_ready:
            self._is_ready = True
            self._too_late.cancel()
            self._taker.answer(wire.encode_answer(Nothing()))

    # The program

    def begin(self, begin: claiming.Begin, fds: list[int]) -> None:
        """Run the program.

        Raises:
            ClocheError: It cannot be; nothing has begun.
        """
        if not self._is_ready or self._job is not None or self._is_over:
            raise DomainError("the machine of the pool cannot begin anything now")
        if begin.called:
            self._launcher.rename(begin.called)
        command = self._command(begin, load(claiming.Words, fds[3]))
        self._link = link = talk.Link(
            self._domain.reactor, self._taker.give_up(), self._taker.pid, lambda link: None
        )
        link.listener = self
        self._watch = TerminalWatch(fds[0])
        stdin, stdout, stderr = _streams(fds, terminal=begin.terminal)
        try:
            job = self._domain.execute(
                command,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                terminal=(begin.rows, begin.cols) if begin.terminal else None,
            )
        except OSError as error:
            self.fail(DomainError(f"the program's streams cannot be used: {error.strerror}"))
            return
        except ClocheError as error:
            self.fail(error)
            return
        self._job = job
        self._programs.began(job)
        if isinstance(job.stdin, InputPump):
            job.stdin.may_read = partial(may_read, link.client, lines=not begin.terminal)
        job.on_started = lambda job: link.send(wire.encode_answer(Nothing()))
        job.on_stopped = lambda job, signo: link.send(talk.encode_event(talk.Event(talk.STOPPED, signo)))
        job.on_done = partial(self._done, command)
        if begin.timeout_ms:
            limit_s = begin.timeout_ms / 1000
            self._time_limit = self._domain.reactor.call_later(limit_s, partial(self._out_of_time, limit_s))

    def _command(self, begin: claiming.Begin, words: claiming.Words) -> GuestCommand:
        request = RunRequest(
            argv=words.argv,
            env=words.env,
            shares=tuple(self._shares),
            workdir=begin.workdir or None,
            user=begin.user or None,
            privileged=begin.privileged,
            pids=begin.pids or None,
            strace=begin.strace,
        )
        facts = self._facts._replace(
            environment=dict(words.environment),
            cwd=begin.cwd,
            umask=begin.umask,
            ignored=begin.ignored,
            nice=os.getpriority(os.PRIO_PROCESS, 0),
        )
        shown = shown_trees(request)
        command = build_command(request, facts, resolve_user(request, facts.user), shown)
        command = command._replace(program=find_program(command, tuple(encode(path) for path in shown)))
        plan = self._domain.plan
        asked = request._replace(
            shares=(),
            memory_mib=plan.request.memory_mib if plan.request else None,
            cpus=plan.request.cpus if plan.request else None,
            kernel=plan.request.kernel if plan.request else None,
            share_later=plan.request.share_later if plan.request else False,
        )
        # In the eyes of those who ask, join, or save it, this is what the domain is there for.
        self._domain.plan = self._launcher.machine.plan = plan._replace(command=command, request=asked)
        return command

    def heard(self, order: Order) -> None:
        """Do what the taker says."""
        if self._job is not None and self._watch is not None:
            obey(self._job, self._watch, order)

    def gone(self) -> None:
        """The taker was killed: the machine goes, and its terminal gets its mode back."""
        if self._watch is not None:
            self._watch.restore()
        self._over()

    def _done(self, command: GuestCommand, job: Job) -> None:
        if self._time_limit is not None:
            self._time_limit.cancel()
        broken = job.output_error()
        if job.failure is not None:
            self._domain.finish(partial(self.fail, failure(job, command)), wait=False)
        elif broken is not None:
            error = ClocheError(
                f"cannot write the program's output: {broken.strerror}",
                hint="Look at where its output goes to: a full disk, or a device that is gone.",
            )
            self._domain.finish(partial(self.fail, error), wait=False)
        else:
            self._programs.over(job)
            if self._programs.count and self._link is not None:
                self._link.send(talk.encode_event(talk.Event(talk.OTHERS, self._programs.count)))

    def _out_of_time(self, limit_s: float) -> None:
        error = TimeLimitError(
            f"the program was ended after its time limit of {limit_s:g} seconds",
            hint="--timeout gives it more.",
        )
        self._domain.finish(partial(self.fail, error), wait=False)

    def _last(self) -> None:
        # What was written to shares is on the host, and the name is free, before the status is told.
        self._domain.finish(self._tell, wait=False)

    def _tell(self) -> None:
        if self._link is not None and self._job is not None:
            self._link.listener = None
            self._link.send(talk.encode_event(end_of(self._job)), last=True)
        self._over()

    # The end

    def fail(self, error: ClocheError) -> None:
        """End, and say why."""
        if self._is_over:
            return
        packet = wire.encode_failure(error)
        if self._link is not None:
            self._link.listener = None
            self._link.send(packet, last=True)
        else:
            self._taker.answer(packet)
        self._over()

    def _over(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._too_late.cancel()
        if self._watch is not None:
            self._watch.close()
        for _, source in self._sources:
            os.close(source)
        self._sources.clear()
        if self._domain.state is not State.ENDED:
            self._domain.close(wait=False)
        self.on_over()


def _streams(fds: list[int], *, terminal: bool) -> tuple[int | None, int | None, int | None]:
    """Return what the session gets, as ``run`` has it: one stream for stdout and stderr that lead to the same place.

    On a terminal, stderr is a stream of its own only when it was sent elsewhere.
    """
    out, err = os.fstat(fds[1]), os.fstat(fds[2])
    same = (out.st_dev, out.st_ino) == (err.st_dev, err.st_ino)
    if terminal:
        return fds[0], fds[1], None if same or os.isatty(fds[2]) else fds[2]
    stdin, stdout, stderr = (None if is_null(fd) else fd for fd in fds[:3])
    if stdout is not None and stderr is not None and same:
        stderr = STDOUT
    return stdin, stdout, stderr
