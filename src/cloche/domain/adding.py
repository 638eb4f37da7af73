"""Giving a running domain one device more (layer 5): QEMU's machine has no hot-plug, so it gets another machine."""

from __future__ import annotations

from cloche.domain.reload import Reload
from cloche.domain.states import paused_error
from cloche.drivers.registry import find_driver
from cloche.errors import ClocheError, DiskError, DomainError, NetworkError
from cloche.host.facts import collect_facts
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.domain.launcher import Launcher
    from cloche.domain.reload import Fail
    from cloche.model.plan import LaunchPlan, Template
    from cloche.model.request import Disk, Network, RunRequest


def add_disk(launcher: Launcher, disk: Disk, done: Callable[[], None], fail: Fail) -> None:
    """Give the domain a disk; ``done`` or ``fail`` is called once.

    Raises:
        DiskError: It cannot have one.
        DomainError: It cannot be saved.
    """

    def change(request: RunRequest) -> RunRequest:
        network = request.network
        if network is not None and network.after_disks is None:
            # The card's transport stays its own: the disk gets the one behind it.
            network = network._replace(after_disks=len(request.disks))
        return request._replace(disks=(*request.disks, disk), network=network)

    _add(launcher, change, DiskError, done, fail)


def add_network(launcher: Launcher, network: Network, done: Callable[[], None], fail: Fail) -> None:
    """Give the domain a network card; ``done`` or ``fail`` is called once.

    Raises:
        NetworkError: It cannot have one.
        DomainError: It cannot be saved.
    """

    def change(request: RunRequest) -> RunRequest:
        if request.network is not None:
            raise NetworkError("the domain has a network card, and a machine has one", hint="Use that one.")
        return request._replace(network=network)

    _add(launcher, change, NetworkError, done, fail)


def _add(
    launcher: Launcher,
    change: Callable[[RunRequest], RunRequest],
    kind: type[ClocheError],
    done: Callable[[], None],
    fail: Fail,
) -> None:
    """Have the domain go on with a machine that was asked for with another request."""
    require_saveable(launcher)
    if not launcher.plan.balloon:
        raise kind(
            "this machine was booted, and its kernel knows no devices but those it was booted with",
            hint="A machine that goes on from a template takes more: `cloche run --dry-run` says what begins how.",
        )

    def plan(template: Template) -> LaunchPlan:
        return plan_again(launcher, change(current_request(launcher)), template)

    def begin(done: Callable[[], None], fail: Fail) -> None:
        def told(is_paused: bool) -> None:
            try:
                if is_paused:
                    raise paused_error()  # its guest binds no device
                Reload(launcher, plan, done, fail)
            except ClocheError as error:
                fail(error)

        launcher.ask_paused(told, fail)

    launcher.sharing.in_turn(begin, done, fail)


def require_saveable(launcher: Launcher) -> None:
    """Look whether a domain can be saved while it runs.

    Raises:
        DomainError: It cannot, and why.
    """
    plan = launcher.plan
    reason = find_driver(plan.driver).why_not_saveable(plan, collect_facts(remember=False))
    if reason:
        raise DomainError(
            f"this domain cannot be saved: {reason}",
            hint="`cloche run --dry-run` says of every plan whether it can be.",
        )


def current_request(launcher: Launcher) -> RunRequest:
    """Return what the domain would have to be asked for with now: shares may have come and gone."""
    request = launcher.plan.request
    assert request is not None
    shared = launcher.sharing.shares
    return request._replace(
        shares=tuple(one.share for one in shared), share_numbers=tuple(one.number for one in shared)
    )


def plan_again(launcher: Launcher, request: RunRequest, template: Template) -> LaunchPlan:
    """Return the plan of a machine that goes on for the present one, with the same kernel and program.

    Raises:
        ClocheError: There can be none.
    """
    plan = launcher.plan
    assert plan.machine is not None
    again = find_driver(plan.driver).plan(request, collect_facts(), plan.machine.kernel, template)
    return again._replace(command=plan.command)
