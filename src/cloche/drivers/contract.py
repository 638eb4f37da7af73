"""What a driver is (layer 4; DESIGN D7).

A driver turns a request into a plan, says what it can do, and controls what runs. Everything above knows drivers only
through this page; one test suite runs against every driver.
"""

from __future__ import annotations

from cloche.record import TYPE_CHECKING, Protocol, Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.errors import ClocheError
    from cloche.host.reactor import Reactor
    from cloche.lean import socket
    from cloche.model.facts import HostFacts
    from cloche.model.machine import Kernel
    from cloche.model.plan import LaunchPlan, Template
    from cloche.model.request import RunRequest


class Capabilities(Record):
    """What a driver can do. What it cannot is refused when planning, never skipped.

    Attributes:
        isolation: What stands between program and host (``model.machine.Isolation``).
        needs_kernel: Whether it boots a guest kernel (and so takes ``--kernel``, ``--boot-log``).
        memory_limit: Whether ``--memory`` is enforced.
        cpu_limit: Whether ``--cpus`` is enforced.
        pids_limit: Whether ``--pids`` is enforced.
        writable_system: Whether the program can write to /usr and /etc of its own layer.
        other_users: Whether the program can run as somebody else than the caller.
        pause: Whether a domain can be paused and resumed.
        save: Whether a running domain can be saved.
    """

    isolation: str
    needs_kernel: bool
    memory_limit: bool
    cpu_limit: bool
    pids_limit: bool
    writable_system: bool
    other_users: bool
    pause: bool
    save: bool


class DriverStatus(Record):
    """Whether a driver can work here, and if not, why and what would mend it."""

    usable: bool
    detail: str
    hint: str = ""


class Control(Protocol):
    """How a running domain is paused, resumed and saved. ``done`` is called with None, or with what went wrong."""

    def pause(self, done: Callable[[ClocheError | None], None]) -> None:
        """Stop the guest's clock and CPUs."""
        raise NotImplementedError

    def resume(self, done: Callable[[ClocheError | None], None]) -> None:
        """Go on after ``pause`` or ``save``."""
        raise NotImplementedError

    def save(self, state: int, done: Callable[[ClocheError | None], None]) -> None:
        """Stop the machine and write all that is not its memory or its disks to an open, empty file.

        It stands still when ``done`` is called, whatever has come of it.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Control nothing any more. May be called twice."""
        raise NotImplementedError


class Driver(Protocol):
    """A way of starting and controlling a domain."""

    name: str

    def capabilities(self, facts: HostFacts) -> Capabilities:
        """Return what the driver can do on this host."""
        raise NotImplementedError

    def status(self, facts: HostFacts) -> DriverStatus:
        """Return whether the driver can work here."""
        raise NotImplementedError

    def plan(
        self, request: RunRequest, facts: HostFacts, kernel: Kernel | None, template: Template | None = None
    ) -> LaunchPlan:
        """Compute everything that will be started, from a template if there is one. Pure.

        Raises:
            UsageError: The request asks for what the driver cannot do.
            HostError: The host lacks what the driver needs.
        """
        raise NotImplementedError

    def why_cold(self, request: RunRequest, facts: HostFacts, kernel: Kernel | None) -> str:
        """Return why this request cannot go on from a template, whatever templates there are; empty if it can."""
        raise NotImplementedError

    def plan_template(self, request: RunRequest, facts: HostFacts, kernel: Kernel) -> LaunchPlan:
        """Compute the machine that is saved as the template for such requests. Pure.

        Its first process is the VMM. Everything a clone has in common with it is in the arguments of its processes
        and in its set-up, which is done before the agent waits for a host; ``kernel`` has an initramfs that says so,
        once the template is really made.
        """
        raise NotImplementedError

    def control(self, reactor: Reactor, take_monitor: Callable[[], tuple[socket.socket, bool]]) -> Control:
        """Take control of a running domain.

        Args:
            reactor: What drives it.
            take_monitor: Gives the connection with the VMM's monitor, and whether that has been greeted.

        Raises:
            DomainError: The driver's domains cannot be controlled.
        """
        raise NotImplementedError

    def why_not_saveable(self, plan: LaunchPlan, facts: HostFacts) -> str:
        """Return why a domain of this plan cannot be saved while it runs; empty if it can."""
        raise NotImplementedError
