"""Making a machine of the pool warm (layer 5): it runs something, and nothing of that stays.

What every program needs is looked up, read and translated once, by programs of the system with fixed words. While they
run, nothing in the guest can be written to: so there is nothing to be cleaned up afterwards but what ends by itself.
"""

from __future__ import annotations

from cloche.errors import DomainError
from cloche.guest.messages import SetupFailed
from cloche.host.text import describe_errno, escape_untrusted
from cloche.plan.pool import WARM_UP, build_close_steps, build_open_steps
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.domain.domain import Domain
    from cloche.errors import ClocheError
    from cloche.guest.job import Job
    from cloche.guest.messages import SetupDone


class WarmUp:
    """One such run. ``done`` is called at its end: with None, or with what went wrong."""

    def __init__(self, domain: Domain, done: Callable[[ClocheError | None], None]) -> None:
        self._domain = domain
        self._done = done
        self._left = list(WARM_UP)

    def begin(self) -> None:
        """Close the guest's file systems, and run the first of the programs."""
        self._domain.set_up(build_close_steps(), self._answered)

    def _answered(self, answer: SetupDone | SetupFailed) -> None:
        if isinstance(answer, SetupFailed):
            self._done(
                DomainError(
                    f"a machine cannot be warmed: {escape_untrusted(answer.what, 200)}: "
                    f"{describe_errno(answer.errno)}"
                )
            )
        elif self._left:
            self._run(self._left.pop(0))
        else:
            self._done(None)

    def _run(self, argv: tuple[bytes, ...]) -> None:
        base = self._domain.plan.command
        command = base._replace(argv=argv, program=argv[0])
        job = self._domain.execute(command, stdin=b"", stdout=_throw_away, stderr=_throw_away)
        job.on_done = self._over

    def _over(self, job: Job) -> None:
        # One that is not there or has failed has made less warm, and that is all.
        del job
        if self._left:
            self._run(self._left.pop(0))
        else:
            self._domain.set_up(build_open_steps(), self._answered)


def _throw_away(data: bytes) -> int:
    return len(data)
