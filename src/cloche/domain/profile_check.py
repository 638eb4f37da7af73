"""What a profile needs before its program runs (layer 5): a look at its disk, and new caches.

A disk that was not closed cleanly is looked at before the guest mounts it, by the guest's own e2fsck (which is the
host's, read-only): nothing of the host ever reads what is on the disk. Caches are made anew when the host has changed.
"""

from __future__ import annotations

from cloche import log
from cloche.errors import ProfileError
from cloche.host.text import escape_untrusted
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.errors import ClocheError
    from cloche.guest.job import Job
    from cloche.guest.messages import SetupDone, SetupFailed
    from cloche.guest.session import AgentSession
    from cloche.model.guest import Step
    from cloche.model.plan import LayerPlan

#: Bits of e2fsck's exit status (e2fsck(8)): it has mended something, and that needs a restart; what else is no success.
_MENDED, _HARMLESS = 1, 3
_NOT_THERE = 127
_MOST_SAID = 8192
_MOST_NAMED = 20


class Check:
    """A set-up with a look at the disk in its middle, and with work on its caches behind it; one of the two at least.

    Args:
        session: The conversation with the agent.
        first: What is done before.
        plan: The check, and what is done after it.
        answered: Called with the answer to the set-up.
        fail: Called when the disk cannot be mounted, with why not.
    """

    def __init__(
        self,
        session: AgentSession,
        first: tuple[Step, ...],
        plan: LayerPlan,
        answered: Callable[[SetupDone | SetupFailed], None],
        fail: Callable[[ClocheError], None],
    ) -> None:
        self._session = session
        self._first = first
        self._plan = plan
        self._answered = answered
        self._fail = fail
        self._done: Callable[[], None]
        self._said = b""

    def start(self, done: Callable[[], None]) -> None:
        """Ask for it; ``done`` is called when the program can be asked for."""
        from cloche.guest.session import STDOUT

        self._done = done
        if self._plan.check is None:
            self._session.setup(self._first, self._answered)
            self._renew()
            return
        self._session.setup(self._first, self._first_done)
        self._session.exec(self._plan.check, stdout=self._hear, stderr=STDOUT).on_done = self._over

    def _first_done(self, answer: SetupDone | SetupFailed) -> None:
        from cloche.guest.messages import SetupFailed

        if isinstance(answer, SetupFailed):
            self._answered(answer)

    def _hear(self, data: bytes) -> None:
        self._said = (self._said + data)[-_MOST_SAID:]

    def _over(self, job: Job) -> None:
        status = job.status
        if status is None:
            status = _NOT_THERE
        said = [escape_untrusted(line, 200) for line in self._said.split(b"\n") if line.strip()]
        if status == _NOT_THERE:
            log.notice(
                f"the profile {self._plan.name} was not closed cleanly and cannot be checked: there is no e2fsck"
            )
        elif status & ~_HARMLESS:
            self._fail(
                ProfileError(
                    f"the disk of the profile {self._plan.name} is damaged, and e2fsck cannot mend it by itself",
                    detail=tuple(said[-8:]),
                    hint=f"`cloche profile export {self._plan.name}` saves what is on it; e2fsck -y in a guest that has"
                    " the image as a --disk mends what can be.",
                )
            )
            return
        elif status & _MENDED:
            log.notice(
                f"the profile {self._plan.name} was not closed cleanly, and its disk was mended"
                + (f": {said[-1]}" if said else "")
            )
        self._session.setup(self._plan.setup, self._answered)
        self._renew()

    def _renew(self) -> None:
        if self._plan.renewal is None:
            self._done()
            return
        self._said = b""
        self._session.exec(self._plan.renewal, stdout=self._hear).on_done = self._renewed

    def _renewed(self, job: Job) -> None:
        lines = [line.split(b" ", 1) for line in self._said.split(b"\n") if b" " in line]
        for word, text in (
            (b"renewed", "were made of the host's earlier files and are made anew"),
            (b"stale", "are of the host's earlier files, and what makes them anew fails or is not there"),
        ):
            names = ", ".join(
                escape_untrusted(name, 200) for said, name in lines[:_MOST_NAMED] if said == word
            )
            if names:
                log.notice(f"caches in the profile {self._plan.name} {text}: {names}")
        if job.status:
            log.notice(
                f"it is not known which caches in the profile {self._plan.name} are of the host's earlier files"
            )
        self._done()
