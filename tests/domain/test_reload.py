"""A domain that gets another machine in the middle of its work: what flows through it loses and doubles nothing."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from cloche.domain.adding import current_request, plan_again
from cloche.domain.domain import Domain
from cloche.domain.launcher import Launcher
from cloche.domain.prepare import prepare_plan
from cloche.domain.reload import Reload
from cloche.domain.states import State
from cloche.domain.template import make_template
from cloche.host.facts import collect_facts
from cloche.host.reactor import Reactor
from cloche.model.request import RunRequest
from support.plans import request

if TYPE_CHECKING:
    from cloche.domain.saving import Saved
    from cloche.domain.timings import Timings
    from cloche.errors import ClocheError
    from cloche.model.plan import LaunchPlan, Template

PATIENCE_S = 300.0


class Flow:
    """Bytes through ``cat`` in a guest whose machine is changed each time another part of them has come back.

    Attributes:
        changes: How often that was.
        refused: Why a change came to nothing.
    """

    def __init__(self, reactor: Reactor, size: int, changes: int, *, spoil: bool = False) -> None:
        self.changes = 0
        self.refused: list[ClocheError] = []
        self.left, self.received = size, 0
        self.sent_sum, self.received_sum = hashlib.sha256(), hashlib.sha256()
        self._marks = [size * number // (changes + 1) for number in range(1, changes + 1)]
        self._block = hashlib.shake_256(b"seed").digest(65537)
        self._spoil = spoil
        self._launchers: list[Launcher] = []
        plan = prepare_plan(RunRequest(argv=(b"cat",)), collect_facts())
        self.domain = Domain(reactor, plan, launcher=self._launcher)

    def _launcher(self, reactor: Reactor, plan: LaunchPlan, timings: Timings) -> Launcher:
        self._launchers.append(Launcher(reactor, plan, timings))
        return self._launchers[-1]

    def source(self, size: int) -> bytes:
        """Give the next bytes; every block begins somewhere else."""
        start = self.left % 997
        piece = self._block[start : start + min(size, self.left)]
        self.left -= len(piece)
        self.sent_sum.update(piece)
        return piece

    def sink(self, data: bytes) -> None:
        """Take what comes back."""
        self.received += len(data)
        self.received_sum.update(data)
        if self._marks and self.received >= self._marks[0]:
            del self._marks[0]
            self._change()

    def _change(self) -> None:
        launcher = self._launchers[-1]

        def plan(template: Template) -> LaunchPlan:
            made = plan_again(launcher, current_request(launcher), template)
            if self._spoil:
                vmm, *others = made.processes
                words = tuple(word.replace(b"mmio-bus.6", b"mmio-bus.5") for word in vmm.argv)
                made = made._replace(processes=(vmm._replace(argv=words), *others))
            return made

        def done() -> None:
            self.changes += 1

        Reload(launcher, plan, done, self.refused.append)


def carry(size: int, changes: int, *, spoil: bool = False) -> Flow:
    """Carry so many bytes through a guest and back."""
    make_template(request(), collect_facts())
    with Reactor() as reactor:
        flow = Flow(reactor, size, changes, spoil=spoil)
        jobs = []
        flow.domain.on_open = lambda: jobs.append(
            flow.domain.execute(flow.domain.plan.command, stdin=flow.source, stdout=flow.sink)
        )
        try:
            flow.domain.start()
            over = reactor.run_until(
                lambda: bool(jobs) and (jobs[0].done or flow.domain.state is State.ENDED), PATIENCE_S
            )
            assert over
            assert jobs[0].status == 0
        finally:
            flow.domain.close()
    assert flow.received == size
    assert flow.sent_sum.digest() == flow.received_sum.digest()
    return flow


def test_200_megabytes_through_eleven_machines() -> None:
    """200 MB both ways through ``cat``, saved and restored ten times in their middle, have equal checksums."""
    flow = carry(200_000_000, 10)
    assert (flow.changes, flow.refused) == (10, [])


@pytest.mark.parametrize("goes_on", [False, True])
def test_nothing_is_taken_from_a_machine_that_is_saved(
    goes_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A VMM goes on emptying the guest's queue after it has saved its devices, where somebody takes what it puts out.

    There is time for that here. In the twin somebody does, and QEMU refuses what does not fit together.
    """
    saved = Reload._saved

    def later(self: Reload, came_of_it: Saved) -> None:
        if goes_on:
            self._launcher.ask_hold(False, lambda: None)
        self._launcher.reactor.call_later(0.3, lambda: saved(self, came_of_it))

    monkeypatch.setattr(Reload, "_saved", later)
    flow = carry(90_000_000, 16)
    assert bool(flow.refused) is goes_on
    assert flow.changes == 16 - len(flow.refused)


def test_a_machine_that_does_not_come_up_changes_nothing() -> None:
    """QEMU refuses what was saved of another machine: the old one goes on, and so does everything in it."""
    flow = carry(6_000_000, 1, spoil=True)
    assert flow.changes == 0
    (error,) = flow.refused
    assert error.message.startswith("the domain goes on as it was: ")
