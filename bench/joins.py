"""How long a program takes that joins a running domain: as typed, by the API, and what of that is the guest's agent.

All three run ``true`` in a guest that has run it before. The agent's own time is that of a program in a domain of this
very process, from the message that asks for it to the one that tells its end: nothing else of cloche is in it.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import cloche
from bench import rounds, scaling
from bench.goals import EXEC_AGENT, EXEC_API, EXEC_TYPED
from bench.prepare import CLOCHE
from bench.rounds import Candidate, MeasureError, Outcome
from cloche.domain.domain import Domain
from cloche.domain.prepare import prepare_plan
from cloche.host.facts import collect_facts
from cloche.host.reactor import Reactor
from cloche.model.request import RunRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PROGRAM = ["true"]


def measure(number: int, budget_s: float) -> Outcome:
    """Measure all three in turn."""
    with ExitStack() as stack:
        name = stack.enter_context(scaling.idle(f"bench-{os.getpid()}"))
        own = stack.enter_context(_own())
        joined = cloche.Domain.find(name)

        def by_api() -> dict[str, float]:
            begin = time.perf_counter()
            done = joined.run(_PROGRAM)
            return _checked(done.returncode, begin)

        typed = [str(CLOCHE), "exec", name, "--", *_PROGRAM]
        candidates = [
            Candidate(EXEC_TYPED, lambda: {"wall": rounds.run_to_exit(typed)["wall"]}),
            Candidate(EXEC_API, by_api),
            Candidate(EXEC_AGENT, own.measure),
        ]
        return rounds.take_turns(candidates, number, budget_s)


def _checked(status: int, begin: float) -> dict[str, float]:
    wall = time.perf_counter() - begin
    if status:
        raise MeasureError(f"true ended with status {status}")
    return {"wall": wall}


class _Own:
    """A domain of this process, with nothing between it and its guest."""

    def __init__(self) -> None:
        self._reactor = Reactor()
        plan = prepare_plan(RunRequest(argv=(b"true",)), collect_facts())
        self._domain = Domain(self._reactor, plan)
        self._opened = False
        self._command = plan.command
        self._domain.on_open = self._open
        self._domain.on_end = self._end
        self._error: cloche.ClocheError | None = None

    def start(self) -> None:
        self._domain.start()
        self._wait_until(lambda: self._opened)

    def close(self) -> None:
        self._domain.close()
        self._reactor.close()

    def measure(self) -> dict[str, float]:
        over: list[int] = []
        begin = time.perf_counter()
        job = self._domain.execute(self._command, stdin=b"", stdout=_throw_away, stderr=_throw_away)
        job.on_done = lambda job: over.append(0 if job.status == 0 else 1)
        self._wait_until(lambda: bool(over))
        return _checked(over[0], begin)

    def _open(self) -> None:
        self._opened = True

    def _end(self, error: cloche.ClocheError) -> None:
        self._error = error

    def _wait_until(self, reached: Callable[[], bool]) -> None:
        self._reactor.run_until(lambda: reached() or self._error is not None, rounds.TIMEOUT_S)
        if self._error is not None:
            raise MeasureError(self._error.message)
        if not reached():
            raise MeasureError("the guest does not answer")


@contextmanager
def _own() -> Iterator[_Own]:
    own = _Own()
    try:
        own.start()
        yield own
    finally:
        own.close()


def _throw_away(data: bytes) -> None:
    del data
