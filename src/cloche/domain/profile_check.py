"""Looking at the disk of a profile that was not closed cleanly (layer 5), in the guest and before it is mounted there.

The guest's own e2fsck does it, which is the host's, read-only: nothing of the host ever reads what is on the disk.
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
    from cloche.guest.session import AgentSession
    from cloche.model.plan import LayerPlan

#: Bits of e2fsck's exit status (e2fsck(8)): it has mended something, and that needs a restart; what else is no success.
_MENDED, _HARMLESS = 1, 3
_NOT_THERE = 127
_MOST_SAID = 8192


class Check:
    """One look at a disk."""

    def __init__(
        self, plan: LayerPlan, done: Callable[[], None], fail: Callable[[ClocheError], None]
    ) -> None:
        """``done`` is called when the disk can be mounted, else ``fail`` with why not."""
        self._plan = plan
        self._done = done
        self._fail = fail
        self._said = b""

    def start(self, session: AgentSession) -> None:
        """Ask for it; it is done behind what was asked for before."""
        from cloche.guest.session import STDOUT

        assert self._plan.check is not None
        session.exec(self._plan.check, stdout=self._hear, stderr=STDOUT).on_done = self._over

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
        self._done()
