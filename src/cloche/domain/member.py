"""The supervisor of one machine of the pool (layer 5): made, warmed, paused; taken, and then a run like any other.

::

    making --> waiting --> taken --> running --> over
       |          |          |          |
       +----------+----------+----------+--> over (it has failed, or whoever took it is gone)

Whoever takes it sends its streams, as those do who join a domain, and stays connected as long as its program runs. When
that one goes away, so does the machine.
"""

from __future__ import annotations

import gc
import os
import time

from cloche import log
from cloche.domain.claims import Claims
from cloche.domain.control import claiming, wire
from cloche.domain.detached import Begun
from cloche.domain.domain import Domain
from cloche.domain.filling import fill_in_background
from cloche.domain.launcher import Launcher
from cloche.domain.prepare import give_notices, prepare_plan
from cloche.domain.programs import Programs
from cloche.domain.staleness import Fingerprint
from cloche.domain.taken import Taken
from cloche.domain.warmup import WarmUp
from cloche.errors import ClocheError, DomainError, TemplateError
from cloche.host import rundir
from cloche.host.confine import Errand
from cloche.host.groups import UNIFIED, follow
from cloche.host.pool import Entry, own_key
from cloche.host.procfs import descendants
from cloche.host.reactor import READ, Reactor
from cloche.host.scheduling import apply, current
from cloche.lean import signal
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.domain.claims import Taker
    from cloche.domain.timings import Timings
    from cloche.host.reactor import Timer
    from cloche.host.scheduling import Scheduling
    from cloche.lean import socket
    from cloche.model.facts import HostFacts
    from cloche.model.plan import LaunchPlan
    from cloche.plan.pool import Setting

#: One that is not ready after so long will never be, in seconds.
_MAKING_S = 120.0
#: So long after it was taken another one is made, or when its program has ended, in seconds.
_REFILL_S = 2.0


class Member:
    """One such machine. ``caller`` is told when it waits; ``begun`` is called then."""

    def __init__(
        self,
        setting: Setting,
        facts: HostFacts,
        usual: Scheduling,
        caller: socket.socket,
        begun: Callable[[], None],
    ) -> None:
        self._setting = setting
        self._facts = facts
        self._usual = usual
        self._caller = caller
        self._begun = begun
        self._reactor = Reactor()
        plan = prepare_plan(setting.request((b"/bin/true",)), facts)
        if plan.template is None:
            raise TemplateError(
                f"a machine of the pool goes on from a template: {plan.cold}",
                hint="`cloche template build` makes one.",
            )
        give_notices(plan)
        self._fingerprint = Fingerprint(plan, facts)
        self._launcher: Launcher
        self._domain = Domain(self._reactor, plan, launcher=self._make_launcher)
        self._programs = Programs(self._domain)
        self._entry: Entry | None = None
        self._claims: Claims | None = None
        self._since_s = 0
        self._is_answered = False
        self._taken: Taken | None = None
        self._errand: Errand | None = None
        self._too_long: Timer | None = None
        self._over = False

    def _make_launcher(self, reactor: Reactor, plan: LaunchPlan, timings: Timings) -> Launcher:
        self._launcher = Launcher(reactor, plan, timings)
        return self._launcher

    def run(self) -> None:
        """Make it, and return when it has ended.

        Raises:
            ClocheError: It could not be made; the caller has not been answered.
        """
        domain = self._domain
        domain.on_open = WarmUp(domain, self._warmed).begin
        domain.on_end = self._ended
        self._reactor.register(self._caller.fileno(), READ, self._left)
        for signo in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self._reactor.add_signal(signo, lambda signo: self._fail(DomainError(f"it got signal {signo}")))
        try:
            domain.start()
            # Before anybody has time to look: it is nobody's domain until it is taken.
            self._enter()
            self._too_long = self._reactor.call_later(_MAKING_S, self._is_too_long)
            rundir.sweep()
            self._reactor.run_until(lambda: self._over)
        finally:
            domain.close(wait=False)
            if self._claims is not None:
                self._claims.close()
            elif self._entry is not None:
                self._entry.close()
            self._reactor.close()
        if self._taken is not None:
            self._fill_again()
        if not self._is_answered:
            raise domain.error or DomainError("a machine of the pool ended before it was ready")

    # Making it

    def _enter(self) -> None:
        try:
            self._entry = Entry(own_key(self._setting.key), self._domain.ident)
            self._claims = Claims(self._reactor, self._entry, self)
        except ClocheError as error:
            self._fail(error)

    def _warmed(self, error: ClocheError | None) -> None:
        if error is None:
            # There are no programs in it, and it is never saved while it waits.
            self._domain.pausing.pause(self._paused, freeze=False)
        else:
            self._fail(error)

    def _paused(self, error: ClocheError | None) -> None:
        if error is not None:
            self._fail(error)
            return
        assert self._entry is not None
        # It stands still from here on: what is there stays where it is, also in the child that is made now.
        gc.collect()
        gc.freeze()
        try:
            # What is made next must not be made by a process that gives way.
            self._schedule(self._usual)
            self._errand = Errand(fill_in_background)
            self._launcher.confine()
            self._entry.publish()
        except OSError as failed:
            self._fail(DomainError(f"a machine of the pool cannot be kept: {failed.strerror}"))
            return
        except ClocheError as refused:
            self._fail(refused)
            return
        if self._too_long is not None:
            self._too_long.cancel()
        self._since_s = int(time.time())
        self._is_answered = True
        self._reactor.unregister(self._caller.fileno())
        try:
            self._caller.send(wire.encode_answer(Begun(self._domain.ident, "", False)))
        except OSError:
            log.debug("whoever fills the pool has gone")
        self._caller.close()
        log.set_sink("notice", None)
        log.set_sink("debug", None)
        self._begun()

    def _is_too_long(self) -> None:
        self._fail(DomainError(f"a machine of the pool was not ready within {_MAKING_S:g} seconds"))

    def _left(self, events: int) -> None:
        del events
        self._reactor.unregister(self._caller.fileno())
        self._fail(DomainError("whoever fills the pool has gone"))

    def _schedule(self, wanted: Scheduling) -> None:
        """Have all processes of the domain scheduled so.

        Raises:
            OSError: That may not be.
        """
        if wanted != current():
            apply(self._processes(), wanted)

    def _processes(self) -> tuple[int, ...]:
        """Return all processes of the domain, this one included."""
        warden = next(
            (one.warden for one in rundir.find_running(waiting=True) if one.ident == self._domain.ident), 0
        )
        return (*(descendants(warden) if warden else ()), os.getpid())

    # What those who come want (``claims.Wanted``)

    def look(self) -> claiming.Seen:
        """Say whether it is what it was made of."""
        return claiming.Seen(self._fingerprint.changed(self._setting.kernel), self._since_s)

    def claimed(self, taker: Taker, claim: claiming.Claim) -> Taken:
        """Go on at once, and look meanwhile whether that was right: nothing of the taker's is there yet."""
        self._reactor.call_later(_REFILL_S, self._fill_again)
        self._taken = taken = Taken(self._launcher, self._programs, self._facts, taker, claim.shares)
        taken.on_over = self._finish
        taken.go_on()
        # While the guest wakes up. Processes with limits of their own have groups of their own, too.
        follow(taker.pid, self._processes(), but=(UNIFIED,) if self._domain.plan.cgroup else ())
        changed = self._fingerprint.changed(self._setting.kernel)
        try:
            if changed:
                raise DomainError(f"the machine of the pool is out of date: {changed}")
            self._schedule(claim.scheduling)
        except OSError as error:
            taken.fail(
                DomainError(f"the machine of the pool cannot run as its caller does: {error.strerror}")
            )
        except ClocheError as error:
            taken.fail(error)
        return taken

    def lost(self) -> None:
        """End: nobody will ever begin anything."""
        self._finish()

    # The end

    def _ended(self, error: ClocheError) -> None:
        if self._taken is not None:
            self._taken.fail(error)
        self._finish()

    def _fail(self, error: ClocheError) -> None:
        self._domain.error = self._domain.error or error
        self._ended(error)

    def _finish(self) -> None:
        self._over = True

    def _fill_again(self) -> None:
        if self._errand is not None:
            self._errand.go()


def serve(
    setting: Setting, facts: HostFacts, usual: Scheduling, caller: socket.socket, begun: Callable[[], None]
) -> None:
    """Be the supervisor of such a machine to its end. What keeps it from waiting is told to ``caller``."""
    try:
        Member(setting, facts, usual, caller, begun).run()
    except ClocheError as error:
        if caller.fileno() >= 0:
            caller.send(wire.encode_failure(error))
            caller.close()
