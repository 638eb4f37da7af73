"""What a guest does before its machine is taken away (layer 5): shares are synced, a profile's disk is closed."""

from __future__ import annotations

from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.guest.messages import SetupDone, SetupFailed
    from cloche.guest.session import AgentSession
    from cloche.model.plan import LayerPlan


def write_back(
    session: AgentSession, layer: LayerPlan | None, *, sync: bool, done: Callable[[bool], None]
) -> None:
    """Have it done; ``done`` is told whether a profile's disk is whole now without a repair.

    Args:
        session: The conversation with the agent.
        layer: The profile's, if there is one.
        sync: Whether shares or other disks can have been written to.
        done: Not called when the guest does not answer.
    """

    def settle() -> None:
        if layer is None:
            done(False)
        else:
            session.setup(layer.closing, settled)

    def settled(answer: SetupDone | SetupFailed) -> None:
        from cloche.guest.messages import SetupDone

        done(isinstance(answer, SetupDone))

    if sync:
        session.sync(settle)
    else:
        settle()
