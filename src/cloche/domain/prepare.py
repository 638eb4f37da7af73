"""From a request to a plan (layer 5): finds what the driver needs and lets it plan."""

from __future__ import annotations

import os

from cloche import log
from cloche.drivers.registry import find_driver
from cloche.errors import HostError, MissingToolError
from cloche.host.programs import find_program
from cloche.model.jail import INSECURE_PARTS
from cloche.model.machine import EMPTY_DRIVE, NOT_APART, Kernel
from cloche.model.plan import Template
from cloche.plan.guest import shown_trees
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.model.facts import HostFacts
    from cloche.model.plan import LaunchPlan
    from cloche.model.request import RunRequest

#: Fields of ``model.facts.Tools``: each is a program of cloche's own.
_OWN = ("agent", "warden", "fs", "disk", "net", "rng", "bundle")


#: Why a machine boots that need not: a template is worth making.
NO_TEMPLATE_YET = "there is no template for it yet"


def prepare_plan(request: RunRequest, facts: HostFacts, *, dry: bool = False) -> LaunchPlan:
    """Return the plan for a request. A ``dry`` one is for reading: nothing is made for it.

    Raises:
        HostError: The driver cannot work here, or cloche's own binaries are missing.
        KernelError: No kernel, or a damaged one.
        UsageError: The request asks for what the driver cannot do.
        CommandNotFoundError, CommandNotExecutableError: The program cannot be there.
    """
    driver = find_driver(request.driver)
    for field in _OWN:
        if not getattr(facts.tools, field):
            raise MissingToolError(f"cloche-{field}", hint="Run `make setup` in cloche's directory.")
    status = driver.status(facts)
    if not status.usable:
        raise HostError(
            f"the {driver.name} driver cannot work here: {status.detail}", hint=status.hint or None
        )
    kernel = None
    if driver.capabilities(facts).needs_kernel:
        kernel = choose_kernel(request.kernel, facts.tools.agent, make=not dry)
        if facts.user.uid == 0 and not dry:
            _check_readable(kernel)
    why_cold = driver.why_cold(request, facts, kernel)
    template = None
    if not why_cold:
        assert kernel is not None
        template = find_template(driver.plan_template(request, facts, kernel))
        if template is None and request.disks:
            # The one for runs without disks does as well, only slower.
            plain = request._replace(layer=None, disks=())
            template = find_template(driver.plan_template(plain, facts, kernel))
        why_cold = "" if template else NO_TEMPLATE_YET
    plan = driver.plan(request, facts, kernel, template)._replace(cold=why_cold, name=request.name)
    if not request.includes:
        program = find_program(plan.command, tuple(os.fsencode(path) for path in shown_trees(request)))
        plan = plan._replace(command=plan.command._replace(program=program))
    return plan


def _check_readable(kernel: Kernel) -> None:
    """Look whether a QEMU that root starts can read what it is to boot: it runs under an id of its own."""
    for path in (kernel.path, kernel.initrd):
        if not os.stat(path).st_mode & 0o004:
            raise HostError(
                f"{path} is for its owner to read, and QEMU does not run as root",
                hint="Let everybody read it (`chmod o+r`): there is no secret in a kernel.",
            )


def give_notices(plan: LaunchPlan) -> None:
    """Say what the user should know of a plan that is about to be started."""
    from cloche.host.memory import first_time

    for line in plan.notices:
        # Not at every run: stderr belongs to the program.
        if first_time(line):
            log.notice(line)
        else:
            log.debug(line)
    # At every run: nobody should get used to it.
    if plan.devices in NOT_APART:
        log.notice(f"{NOT_APART[plan.devices]} (--devices={plan.devices})")
    for part in plan.insecure:
        log.notice(f"the jails are without {INSECURE_PARTS[part]} (--insecure-no-jail={part})")


def wants_template(plan: LaunchPlan, request: RunRequest) -> bool:
    """Tell whether a template is to be made unasked: where there is none, or one of another kind.

    Only for the machine that most runs have.
    """
    if request.memory_mib is not None or request.cpus is not None or request.kernel is not None:
        return False
    template, machine = plan.template, plan.machine
    if template is None or machine is None:
        return plan.cold == NO_TEMPLATE_YET
    if not request.disks or EMPTY_DRIVE not in machine.kernel.abilities:
        return False
    from cloche.drivers.qemu.disk import count_drives

    return template.drives < count_drives(request)


def find_template(machine: LaunchPlan) -> Template | None:
    """Return the template for machines like this one, which ``Driver.plan_template`` has made."""
    from cloche.host import templates

    try:
        found = templates.find(describe_template(machine))
    except OSError as error:
        log.debug(f"looking for a template: {error}")
        return None
    if found is None:
        if not templates.is_trusted():
            log.notice(f"{templates.home()} is not yours alone, so no template is taken from there")
        return None
    vmm = machine.processes[0]
    directory = found.directory
    return Template(
        directory=directory,
        memory=f"{directory}/{templates.MEMORY}",
        state=vmm.files[0]._replace(path=f"{directory}/{templates.STATE}", writable=False),
        checksum=found.checksum,
        target=machine.memory,
        bound=len(machine.slots),
        drives=sum(process.name.startswith("disk-") for process in machine.processes),
    )


def describe_template(machine: LaunchPlan) -> str:
    """Return everything that a machine must have in common with its template.

    Raises:
        OSError: A file it is made of is not there.
    """
    from cloche.host import templates

    assert machine.machine is not None
    kernel = machine.machine.kernel
    programs = [process.executable or os.fsdecode(process.argv[0]) for process in machine.processes]
    words = [word for process in machine.processes for word in process.argv]
    return templates.describe(words, map(repr, machine.setup), (*programs, kernel.path), kernel.initrd)


def choose_kernel(wanted: str | None, agent: str, *, make: bool = True) -> Kernel:
    """Return the kernel to boot, with its initramfs made (unless ``make`` is false).

    Raises:
        KernelError: There is none, or it is damaged.
    """
    from cloche.kernel.initramfs import ensure_initramfs
    from cloche.kernel.store import find_kernel

    info = find_kernel(wanted)
    return Kernel(
        ident=info.id,
        path=info.image,
        initrd=ensure_initramfs(info, agent, make=make),
        kind=info.kind,
        machine=info.machines[0],
        abilities=info.abilities,
    )
