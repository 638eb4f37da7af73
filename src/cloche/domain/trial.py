"""Trying an accelerator (layer 5; DESIGN D11): boots the guest kernel and believes nothing else."""

from __future__ import annotations

from cloche.domain.domain import Domain
from cloche.domain.prepare import prepare_plan
from cloche.errors import ClocheError
from cloche.host.reactor import Reactor
from cloche.model.request import RunRequest
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from cloche.model.facts import HostFacts

#: A guest under KVM answers in a fraction of a second; one that runs but crawls is no use either. In seconds.
KVM_DEADLINE_S = 5.0


class Trial(Record):
    """What a trial showed: whether a program ran in the guest, after how many seconds, and if not, why."""

    works: bool
    seconds: float
    why: str


def try_run(
    facts: HostFacts, *, accelerator: str | None = None, driver: str = "qemu", deadline_s: float | None = None
) -> Trial:
    """Boot a guest, run ``true`` in it, and say how it went. Never raises for a guest that fails."""
    request = RunRequest(
        argv=(b"true",),
        driver=driver,
        accelerator=accelerator,
        boot_timeout_s=deadline_s,
        workdir="/",
        cold=True,
    )
    outcome: list[str] = []
    with Reactor() as reactor:
        begin = reactor.time()
        try:
            plan = prepare_plan(request, facts._replace(kvm=True) if accelerator == "kvm" else facts)
            domain = Domain(reactor, plan)
        except ClocheError as error:
            return Trial(False, 0.0, error.message)

        def opened() -> None:
            job = domain.execute(plan.command)
            job.on_done = lambda done: outcome.append(
                "" if done.status == 0 else f"`true` ended with status {done.status}"
            )

        domain.on_open = opened
        domain.on_end = lambda error: outcome.append(error.message)
        try:
            domain.start()
            reactor.run_until(lambda: bool(outcome), timeout=(deadline_s or 60.0) + 10.0)
        except ClocheError as error:
            outcome.append(error.message)
        finally:
            domain.close()
        seconds = reactor.time() - begin
    why = outcome[0] if outcome else "no answer"
    return Trial(not why, seconds, why)
