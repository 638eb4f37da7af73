"""A domain that stands still and goes on (layer 5): its programs stop before its machine does, and go on after it."""

from __future__ import annotations

from cloche.domain.states import State
from cloche.errors import DomainError
from cloche.guest.messages import SetupDone
from cloche.model.guest import Clock, Freeze, Thaw
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.domain.domain import Domain
    from cloche.errors import ClocheError

#: A guest that does not let its programs stand still within this time is paused all the same, in seconds.
_FREEZE_TIMEOUT_S = 10.0


class Pausing:
    """Pauses a domain and lets it go on.

    Attributes:
        is_frozen: Whether the agent has let the programs stand still. Only then can what is paused be saved: the guest
            runs again for that, and its programs must not.
    """

    def __init__(self, domain: Domain) -> None:
        """Make one for a domain that runs."""
        self.is_frozen = False
        self._was_asked = False
        self._domain = domain

    def pause(self, done: Callable[[ClocheError | None], None], *, freeze: bool = True) -> None:
        """Stop the guest; ``done`` is called with None when it stands still, or with what went wrong.

        Args:
            done: Called once.
            freeze: Have the agent let its programs stand still before. A guest that does not answer is stopped as it
                is.

        Raises:
            DomainError: It does not run, or its driver cannot do that.
        """
        domain = self._domain
        domain.life.require_running()
        control = domain.control

        def paused(error: ClocheError | None) -> None:
            if error is None and domain.state is State.RUNNING:
                domain.life.enter(State.PAUSED)
            elif error is None and domain.state is not State.PAUSED:
                # Its last program has ended meanwhile: it must hear what it is told at its end.
                control.resume(_ignore)
            done(error)

        if not freeze:
            control.pause(paused)
            return
        self._was_asked, self.is_frozen = True, False
        waits = True

        def frozen(*, is_frozen: bool) -> None:
            nonlocal waits
            if waits:
                waits = False
                timer.cancel()
                self.is_frozen = is_frozen
                control.pause(paused)

        timer = domain.reactor.call_later(_FREEZE_TIMEOUT_S, lambda: frozen(is_frozen=False))
        domain.set_up((Freeze(),), lambda answer: frozen(is_frozen=isinstance(answer, SetupDone)))

    def require_frozen(self) -> None:
        """Check that no program runs when the machine of a paused domain does, as it must to be saved.

        Raises:
            DomainError: That is not so.
        """
        if not self.is_frozen:
            raise DomainError(
                "the domain is paused, and its guest did not answer when it was: programs might run while it is saved",
                hint="`cloche resume` it first.",
            )

    def resume(self, done: Callable[[ClocheError | None], None]) -> None:
        """Let a guest that was paused go on; ``done`` is called likewise.

        Raises:
            DomainError: It is not paused.
        """
        domain = self._domain
        if domain.state is not State.PAUSED:
            domain.life.require_running()
            raise DomainError("the domain is not paused")

        def resumed(error: ClocheError | None) -> None:
            if error is None and domain.state is State.PAUSED:
                domain.life.enter(State.RUNNING)
                self._thaw()
            done(error)

        domain.control.resume(resumed)

    def wake(self) -> None:
        """Let a paused guest hear what it is told at its end; it stays paused for all others."""
        self._domain.control.resume(_ignore)
        self._thaw()

    def _thaw(self) -> None:
        """Let the programs go on, in a guest whose clock has stood still as well."""
        if self._was_asked:
            self._was_asked = self.is_frozen = False
            self._domain.set_up((Clock(), Thaw()), lambda answer: None)


def _ignore(error: ClocheError | None) -> None:
    """The end that follows does not wait for it."""
    del error
