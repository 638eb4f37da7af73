"""The QEMU driver (layer 4): a machine per domain, under KVM or by emulation."""

from __future__ import annotations

from cloche.drivers.contract import Capabilities, DriverStatus
from cloche.drivers.qemu.plan import MINIMUM_VERSION, plan_launch
from cloche.model.machine import Isolation
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.drivers.contract import Control
    from cloche.host.reactor import Reactor
    from cloche.lean import socket
    from cloche.model.facts import HostFacts
    from cloche.model.machine import Kernel
    from cloche.model.plan import LaunchPlan, Template
    from cloche.model.request import RunRequest


class QemuDriver:
    """See the package's docstring."""

    name = "qemu"

    def capabilities(self, facts: HostFacts) -> Capabilities:
        """Return what the driver can do on this host."""
        return Capabilities(
            isolation=Isolation.HARDWARE_VM if facts.kvm else Isolation.EMULATED_VM,
            needs_kernel=True,
            memory_limit=True,
            cpu_limit=True,
            pids_limit=True,
            writable_system=True,
            other_users=True,
            pause=True,
            save=False,
        )

    def status(self, facts: HostFacts) -> DriverStatus:
        """Return whether QEMU is there and new enough."""
        major, minor = facts.tools.qemu_version
        oldest = ".".join(map(str, MINIMUM_VERSION))
        if not facts.tools.qemu:
            return DriverStatus(
                False,
                "QEMU is not installed",
                "Install qemu-system-x86: run `make setup` in cloche's directory.",
            )
        if (major, minor) == (0, 0):
            return DriverStatus(
                False,
                f"{facts.tools.qemu} does not say its version",
                f"Run `{facts.tools.qemu} --version`: it must print a version of {oldest} or newer.",
            )
        if (major, minor) < MINIMUM_VERSION:
            return DriverStatus(False, f"QEMU {major}.{minor} is too old", f"Install QEMU {oldest} or newer.")
        return DriverStatus(True, f"QEMU {major}.{minor}")

    def plan(
        self, request: RunRequest, facts: HostFacts, kernel: Kernel | None, template: Template | None = None
    ) -> LaunchPlan:
        """Compute the launch of a machine."""
        return plan_launch(request, facts, kernel, template)

    def why_cold(self, request: RunRequest, facts: HostFacts, kernel: Kernel | None) -> str:
        """Look at what is asked for, and at what QEMU allows."""
        if request.cold:
            return "--cold was given"
        from cloche.drivers.qemu.template import why_cold

        return why_cold(request, facts, kernel)

    def plan_template(self, request: RunRequest, facts: HostFacts, kernel: Kernel) -> LaunchPlan:
        """Compute a machine with the control port alone."""
        from cloche.drivers.qemu.template import plan_template

        return plan_template(request, facts, kernel)

    def control(self, reactor: Reactor, take_monitor: Callable[[], tuple[socket.socket, bool]]) -> Control:
        """Speak with QEMU's monitor."""
        from cloche.drivers.qemu.control import QmpControl

        return QmpControl(reactor, *take_monitor())

    def why_not_saveable(self, plan: LaunchPlan, facts: HostFacts) -> str:
        """Look at the machine and its devices."""
        from cloche.drivers.qemu.abilities import why_not_saveable

        if plan.machine is None or plan.machine.kernel.machine != "microvm":
            return "nobody has tried it with anything but microvm"
        vmm = next(process for process in plan.processes if process.name == "vmm")
        return why_not_saveable(vmm.argv, facts.tools.qemu_version)
