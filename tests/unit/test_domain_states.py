"""Where a domain may go from each state, and what is said of the others."""

from __future__ import annotations

import pytest

from cloche.domain.states import NEXT, Life, State
from cloche.errors import DomainError


def at(state: State) -> Life:
    """Return a life in this state."""
    life = Life()
    life.state = state
    return life


@pytest.mark.parametrize("before", list(State))
@pytest.mark.parametrize("after", list(State))
def test_only_what_the_table_allows_happens(before: State, after: State) -> None:
    """Every other change is an error, changes nothing and is told to nobody."""
    life = at(before)
    told: list[State] = []
    life.changed = lambda: told.append(life.state)
    if after in NEXT[before]:
        life.enter(after)
        assert life.state is after
        assert told == ([] if before is after else [after])
    else:
        with pytest.raises(DomainError, match=f"{before.value} cannot become {after.value}"):
            life.enter(after)
        assert (life.state, told) == (before, [])


def test_every_state_leads_to_the_end_and_nothing_from_there() -> None:
    """Whatever happens, a domain can be ended; and it stays so."""
    assert set(NEXT) == set(State)
    assert all(State.ENDED in after for after in NEXT.values())
    assert NEXT[State.ENDED] == (State.ENDED,)


@pytest.mark.parametrize(
    "state, said",
    [
        (State.BOOTING, "still starting"),
        (State.PAUSED, "is paused"),
        (State.STOPPING, "has ended"),
        (State.ENDED, "has ended"),
    ],
)
def test_who_may_not_join_is_told_why(state: State, said: str) -> None:
    """The reason follows from the state; a running domain takes everybody."""
    with pytest.raises(DomainError, match=said):
        at(state).require_running()
    at(State.RUNNING).require_running()


def test_states_have_words_for_people() -> None:
    """Three states are one to those outside."""
    words = [at(state).word for state in State]
    assert words == ["starting", "starting", "starting", "running", "paused", "stopping", "ended"]
