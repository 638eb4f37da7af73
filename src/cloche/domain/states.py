"""Where a domain is in its life, and how it may go on from there (layer 5).

::

    PLANNED --> BOOTING --> SETTING_UP --> RUNNING <--> PAUSED
                  | ^            |            |           |
                  +-+            |            v           |
             (without its        |         STOPPING <-----+
               template)         |            |           |
                  +--------------+------------+-----------+--> ENDED

There is one place where a state is entered, and what is not in the table is an error of cloche's. Whether another
program may join is a question of the state alone: once the last program has ended the domain is STOPPING, in the same
turn of the loop, and so a join is either served or told that the domain has ended.
"""

from __future__ import annotations

from cloche.errors import DomainError
from cloche.lean import Enum
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class State(Enum):
    """Where a domain is in its life."""

    PLANNED = "planned"
    BOOTING = "booting"
    SETTING_UP = "setting up"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    ENDED = "ended"


#: Where each state may lead. ENDED leads nowhere, and may be entered again: who ends a domain need not ask first.
NEXT = {
    State.PLANNED: (State.BOOTING, State.ENDED),
    State.BOOTING: (State.BOOTING, State.SETTING_UP, State.ENDED),
    State.SETTING_UP: (State.RUNNING, State.ENDED),
    State.RUNNING: (State.PAUSED, State.STOPPING, State.ENDED),
    State.PAUSED: (State.RUNNING, State.STOPPING, State.ENDED),
    State.STOPPING: (State.STOPPING, State.ENDED),
    State.ENDED: (State.ENDED,),
}
#: What somebody outside calls a state.
_STARTING = (State.PLANNED, State.BOOTING, State.SETTING_UP)


class Life:
    """The state of one domain.

    Attributes:
        state: The present one.
        changed: Called after each change.
    """

    def __init__(self) -> None:
        self.state = State.PLANNED
        self.changed: Callable[[], None] = _nothing

    def enter(self, state: State) -> None:
        """Go on to another state.

        Raises:
            DomainError: The present one does not lead there.
        """
        if state not in NEXT[self.state]:
            raise DomainError(f"a domain that is {self.state.value} cannot become {state.value}")
        if state is not self.state:
            self.state = state
            self.changed()

    def require(self, *states: State) -> None:
        """Check the state.

        Raises:
            DomainError: It is another one.
        """
        if self.state not in states:
            raise DomainError(
                f"the domain is {self.state.value}, not {' or '.join(state.value for state in states)}"
            )

    def require_running(self) -> None:
        """Check that programs can be started and reached.

        Raises:
            DomainError: They cannot, and why.
        """
        if self.state is State.RUNNING:
            return
        if self.state is State.PAUSED:
            raise paused_error()
        if self.state in _STARTING:
            raise DomainError("the domain is still starting", hint="Try again in a moment.")
        raise DomainError("the domain has ended", hint="`cloche ps` lists those that run.")

    @property
    def word(self) -> str:
        """The state in a word for people: starting, running, paused, stopping or ended."""
        return "starting" if self.state in _STARTING else self.state.value


def paused_error() -> DomainError:
    """Return the error for what a domain that stands still cannot do."""
    return DomainError("the domain is paused", hint="`cloche resume` lets it go on.")


def _nothing() -> None:
    """Stand in for a callback nobody set."""
