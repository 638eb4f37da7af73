"""The programs of one domain (layer 5): the one it was started for, and those that have joined it.

A domain ends when the last of them has ended. Whether another one may join is decided by the domain's state, and the
state changes in the same turn of the loop in which the last program is known to have ended: there is no moment in
between.
"""

from __future__ import annotations

from cloche.domain.states import State
from cloche.errors import DomainError
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.domain.domain import Domain
    from cloche.domain.outlet import Outlet
    from cloche.guest.job import Job
    from cloche.host.reactor import Timer

_SIGTERM, _SIGCONT = 15, 18


class Programs:
    """What runs in a domain.

    Attributes:
        domain: Where it runs.
        main: The program the domain was started for, once it was asked for.
        status: Its status as a shell shows it, once it has ended.
        on_last: Called once, when the last program has ended. The domain is STOPPING by then.
        detached: Whether nobody waits at a terminal for the main program.
        lasting: Whether the domain goes on without any program, until it is stopped.
        outlet: Where the main program's output goes when it has no caller's streams; None where it has.
    """

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.main: Job | None = None
        self.status: int | None = None
        self.on_last: Callable[[], None] = _nothing
        self.detached = False
        self.lasting = False
        self.outlet: Outlet | None = None
        self._joined: set[Job] = set()
        self._together: set[Job] = set()
        self._waiting: list[Callable[[int], None]] = []
        self._grace: Timer | None = None
        domain.programs = self

    @property
    def count(self) -> int:
        """How many run."""
        return len(self._joined) + (self.main is not None and self.status is None)

    @property
    def strangers(self) -> int:
        """How many have joined of whom the main program's caller need not know."""
        return len(self._joined - self._together)

    def began(self, main: Job) -> None:
        """Note the main program. Asked for while the guest is set up: nobody can have joined before."""
        self.main = main

    def joined(self, job: Job, *, is_together: bool = False) -> None:
        """Note one that has joined; the state was asked right before it was asked for.

        Args:
            job: The program.
            is_together: Whether it belongs to the same job of the caller's shell as the main one: a pipeline's.
        """
        self._joined.add(job)
        if is_together:
            self._together.add(job)

    def over(self, job: Job) -> None:
        """Note that one has ended, however."""
        if job is self.main:
            self.status = job.status if job.status is not None else 125
            waiting, self._waiting = self._waiting, []
            for answer in waiting:
                answer(self.status)
        self._joined.discard(job)
        self._together.discard(job)
        if (
            self.count == 0
            and not self.lasting
            and self.domain.state in (State.RUNNING, State.PAUSED, State.STOPPING)
        ):
            self.domain.wake()
            self.domain.life.enter(State.STOPPING)
            if self._grace is not None:
                self._grace.cancel()
            self.on_last()

    def wait(self, answer: Callable[[int], None]) -> None:
        """Call ``answer`` with the main program's status when it has ended; at once if it has."""
        if self.status is not None:
            answer(self.status)
        else:
            self._waiting.append(answer)

    def signal(self, signo: int) -> None:
        """Send a signal to the main program or, once that has ended, to all others.

        Raises:
            DomainError: The domain is paused, or has ended, or there is none.
        """
        if self.domain.state is not State.STOPPING:
            self.domain.life.require_running()
        if self.main is not None and self.status is None:
            self.main.signal(signo)
            return
        if not self._joined:
            raise DomainError("no program runs in the domain", hint="`cloche stop` ends it.")
        for job in self._joined:
            job.signal(signo)

    def stop(self, grace_s: float) -> None:
        """Ask every program to end, and end the domain when some have not after ``grace_s``. Nobody joins any more.

        Raises:
            DomainError: The domain has ended.
        """
        self.domain.life.require(State.RUNNING, State.PAUSED, State.STOPPING)
        self.domain.wake()
        self.domain.life.enter(State.STOPPING)
        self.lasting = False
        if self.count == 0:
            # There is nobody to be asked.
            self.on_last()
            return
        # One that is stopped by a signal would not hear.
        for signo in (_SIGTERM, _SIGCONT):
            for job in (*self._joined, self.main):
                if job is not None:
                    job.signal(signo)
        if self._grace is not None:
            self._grace.cancel()

        def too_late() -> None:
            self.domain.give_up(
                DomainError(f"the domain was stopped: its programs did not end within {grace_s:g} s")
            )

        self._grace = self.domain.reactor.call_later(grace_s, too_late)


def _nothing() -> None:
    """Stand in for a callback nobody set."""
