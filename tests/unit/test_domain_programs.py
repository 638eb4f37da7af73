"""The account of a domain's programs: when the last one has ended, and who may still join."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from cloche.domain.programs import Programs
from cloche.domain.states import Life, State
from cloche.errors import ClocheError, DomainError
from cloche.host.reactor import Reactor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cloche.domain.domain import Domain
    from cloche.guest.job import Job


class Program:
    """Stands for a job of the guest's."""

    def __init__(self, status: int | None = 0) -> None:
        self.status = status
        self.signals: list[int] = []

    def signal(self, signo: int) -> None:
        """Note it."""
        self.signals.append(signo)


class House:
    """Stands for a domain: its life, its loop, its end."""

    def __init__(self) -> None:
        self.life = Life()
        self.life.state = State.RUNNING
        self.reactor = Reactor()
        self.aborted: list[ClocheError] = []
        self.programs: Programs | None = None

    @property
    def state(self) -> State:
        """Where it is."""
        return self.life.state

    def wake(self) -> None:
        """Do nothing: it is not paused."""

    def give_up(self, error: ClocheError) -> None:
        """Note the reason."""
        self.aborted.append(error)


@pytest.fixture
def house() -> Iterator[House]:
    """Provide a domain that runs."""
    made = House()
    yield made
    made.reactor.close()


def account(house: House, main: Program) -> Programs:
    """Return the account of a domain whose own program runs."""
    programs = Programs(cast("Domain", house))
    programs.began(cast("Job", main))
    return programs


def may_join(house: House) -> bool:
    """Tell whether a join would be served."""
    try:
        house.life.require_running()
    except DomainError as error:
        if "has ended" not in error.message:
            raise
        return False
    return True


def check_that_nobody_joins_after_the_last(house: House, kind: type[Programs]) -> None:
    """From the very moment in which the last program is known to have ended, a join is told so."""
    main, other = Program(3), Program(0)
    programs = kind(cast("Domain", house))
    programs.began(cast("Job", main))
    seen: list[bool] = []
    programs.on_last = lambda: seen.append(may_join(house))
    programs.joined(cast("Job", other))
    programs.over(cast("Job", main))
    assert (programs.status, programs.count, may_join(house), seen) == (3, 1, True, [])
    programs.over(cast("Job", other))
    assert (programs.count, may_join(house), seen) == (0, False, [False])


def test_nobody_joins_after_the_last(house: House) -> None:
    """The state has changed before anybody else gets a turn."""
    check_that_nobody_joins_after_the_last(house, Programs)


def test_without_the_guard_a_join_is_lost(house: House) -> None:
    """The twin: an account that does not change the state lets somebody into a machine that is going."""

    class Mutant(Programs):
        def over(self, job: Job) -> None:
            self._joined.discard(job)
            if job is self.main:
                self.status = job.status
            if self.count == 0:
                self.on_last()

    with pytest.raises(AssertionError):
        check_that_nobody_joins_after_the_last(house, Mutant)


def test_waiting_is_for_the_domains_own_program(house: House) -> None:
    """Whoever waits is answered when it ends, at once afterwards, and not by another program's end."""
    main, other = Program(7), Program(1)
    programs = account(house, main)
    programs.joined(cast("Job", other))
    said: list[int] = []
    programs.wait(said.append)
    programs.joined(cast("Job", Program()))
    programs.over(cast("Job", other))
    assert said == []
    programs.over(cast("Job", main))
    programs.wait(said.append)
    assert said == [7, 7]


def test_signals_go_to_the_domains_own_program_and_then_to_the_others(house: House) -> None:
    """As long as it runs they are its alone."""
    main, other = Program(), Program()
    programs = account(house, main)
    programs.joined(cast("Job", other))
    programs.signal(10)
    programs.over(cast("Job", main))
    programs.signal(12)
    assert (main.signals, other.signals) == ([10], [12])


def test_stopping_asks_everybody_and_insists_after_the_grace(house: House) -> None:
    """Nobody joins any more; who ends in time spares the domain the hard way."""
    main, other = Program(), Program()
    programs = account(house, main)
    programs.joined(cast("Job", other))
    programs.stop(0.0)
    assert (main.signals, other.signals, may_join(house)) == ([15, 18], [15, 18], False)
    assert house.reactor.run_until(lambda: bool(house.aborted), 60)
    assert "did not end within 0 s" in house.aborted[0].message
    programs.stop(3600.0)
    programs.over(cast("Job", other))
    programs.over(cast("Job", main))
    assert len(house.aborted) == 1
