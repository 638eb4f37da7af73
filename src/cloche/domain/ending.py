"""What a guest does before its machine is taken away (layer 5): shares are synced, a profile's disk is closed."""

from __future__ import annotations

from cloche.model.guest import Settle
from cloche.model.request import MountKind
from cloche.plan.guest import encode
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.guest.messages import SetupDone, SetupFailed
    from cloche.guest.session import AgentSession
    from cloche.host.reactor import Reactor
    from cloche.model.plan import LaunchPlan


#: A guest that does not do it within this time is ended all the same, in seconds.
_TIMEOUT_S = 30.0


def write_back(
    reactor: Reactor, session: AgentSession, plan: LaunchPlan, *, sync: bool, done: Callable[[bool], None]
) -> None:
    """Have it done.

    Args:
        reactor: What drives it.
        session: The conversation with the agent.
        plan: Of the domain, which may have a profile and images that can be written to.
        sync: Whether shares or other disks can have been written to.
        done: Called once, with whether a profile's disk is whole now without a repair.
    """
    layer = plan.layer
    is_over = False

    def over(is_settled: bool) -> None:
        nonlocal is_over
        if not is_over:
            is_over = True
            timer.cancel()
            done(is_settled)

    def settle() -> None:
        if layer is None:
            over(False)
        else:
            session.setup(layer.closing, settled)

    def settled(answer: SetupDone | SetupFailed) -> None:
        from cloche.guest.messages import SetupDone

        over(isinstance(answer, SetupDone))

    timer = reactor.call_later(_TIMEOUT_S, lambda: over(False))
    for mount in plan.request.mounts if plan.request else ():
        if mount.kind == MountKind.HOST_IMAGE and mount.writable:
            # By itself: root of the guest may have taken it away, and not every file system can.
            session.setup((Settle(encode(mount.target)),), _ignore)
    if sync:
        session.sync(settle)
    else:
        settle()


def _ignore(answer: SetupDone | SetupFailed) -> None:
    """Take note of nothing."""
