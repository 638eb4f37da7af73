"""The drivers' plans: what a machine gets, what is refused, and what the user is told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cloche.drivers.qemu.command import INITRD_PATH, KERNEL_PATH
from cloche.drivers.qemu.machine import choose_machine
from cloche.drivers.registry import DRIVER_NAMES, find_driver
from cloche.errors import ClocheError, HostError, ShareError, UsageError
from cloche.model.guest import CopyTree, Entropy, Loopback
from cloche.model.jail import AS_IS, IDS_PER_DOMAIN, OWN, Bind, BindFlag, File, JailFlag, Namespace
from cloche.model.machine import LO_ON_DEMAND
from cloche.model.plan import EndpointKind
from cloche.model.request import Disk, Include
from cloche.plan.shares import contains
from support.plans import ALICE, FILTERS, KERNEL, ROOT, TOOLS, facts, plan, process, request, share, values

if TYPE_CHECKING:
    from cloche.model.facts import HostFacts

CAP_DAC_READ_SEARCH, CAP_SETUID = 1 << 2, 1 << 7
Q35 = KERNEL._replace(kind="fetched", machine="q35")


def test_drivers_are_found_by_name() -> None:
    """Every name in the list is a driver of that name, any other is refused with the list."""
    for name in DRIVER_NAMES:
        assert find_driver(name).name == name
    with pytest.raises(UsageError) as caught:
        find_driver("vmware")
    assert all(name in str(caught.value.hint) for name in DRIVER_NAMES)


# What every driver's plan must hold.


@pytest.fixture(params=DRIVER_NAMES)
def driver(request: pytest.FixtureRequest) -> str:
    """Provide every driver, one after the other."""
    return str(request.param)


@pytest.fixture(params=[ALICE, ROOT], ids=lambda user: user.name)
def host(request: pytest.FixtureRequest) -> HostFacts:
    """Provide the facts of an ordinary user and of root."""
    return facts(request.param)


SHARES = (share("/data"), share("/data/rw", writable=True), share("/src", "/home/alice/src", writable=True))
INCLUDES = (Include("/x/file", "/tmp/file"),)


def test_plans_are_pure(driver: str, host: HostFacts) -> None:
    """Equal requests and facts give equal plans."""
    asked = request(b"ls", shares=SHARES, includes=INCLUDES)
    assert plan(asked, host, driver) == plan(asked, host, driver)


def test_every_descriptor_has_an_endpoint(driver: str, host: HostFacts) -> None:
    """Processes receive sides that their endpoints have, each number once, and control is one of the endpoints."""
    sides = {
        EndpointKind.LISTEN: {"listen", "connect"},
        EndpointKind.LINK: {"listen", "connect"},
        EndpointKind.PAIR: {"there"},
    }
    made = plan(request(shares=SHARES), host, driver)
    kinds = {endpoint.name: endpoint.kind for endpoint in made.endpoints}
    assert len(kinds) == len(made.endpoints)
    taken = [(item.endpoint, item.side) for process in made.processes for item in process.descriptors]
    assert len(taken) == len(set(taken))
    assert all(side in sides[kinds[name]] for name, side in taken)
    for one in made.processes:
        numbers = [descriptor.number for descriptor in one.descriptors]
        assert len(numbers) == len(set(numbers))
        assert all(2 < number < 256 for number in numbers)
    assert {made.control, made.console, made.monitor} - {""} <= set(kinds)


def test_every_jail_is_closed(driver: str, host: HostFacts) -> None:
    """Each process has a root of its own, no new privileges, no core file, and not the host's names or network."""
    for one in plan(request(shares=SHARES), host, driver).processes:
        assert one.jail.flags & JailFlag.NO_NEW_PRIVS
        assert not one.jail.flags & JailFlag.KEEP_ROOT
        assert one.jail.namespaces & Namespace.MOUNT
        assert (4, 0, 0) in one.jail.rlimits
        # Of root's only those stay root that may become anybody.
        apart = host.user.uid == 0 and driver == "qemu" and not one.jail.keep_caps & CAP_SETUID
        assert (one.jail.uid, one.jail.gid) == ((OWN, OWN) if apart else (AS_IS, AS_IS))
        assert one.jail.root
        assert all(word.partition(b"=")[0] == b"TMPDIR" for word in one.env)
        assert one.executable or one.argv[0].startswith(b"/")


@pytest.mark.parametrize(
    "secret", ["/etc/shadow", "/etc/ssh", "/etc/sudoers", "/home/bob", "/root", "/var/lib", "/boot"]
)
def test_no_jail_shows_a_secret(driver: str, host: HostFacts, secret: str) -> None:
    """No process of a domain sees what the guest may not see, writable shares and all."""
    for one in plan(request(shares=SHARES, includes=INCLUDES), host, driver).processes:
        for op in one.jail.root:
            if isinstance(op, Bind):
                assert not contains(os.fsdecode(op.source), secret), one.name
                assert not contains(secret, os.fsdecode(op.source)), one.name


def test_only_writable_shares_are_bound_writable(host: HostFacts) -> None:
    """In the jails of a machine a bind can be written through exactly if it is a share with :rw."""
    made = plan(request(shares=SHARES, includes=INCLUDES), host)
    writable = [
        op.source
        for one in made.processes
        for op in one.jail.root
        if isinstance(op, Bind) and not op.flags & BindFlag.READ_ONLY
    ]
    assert writable == [b"/data/rw", b"/src"]


def test_shares_are_whole_and_give_no_rights(driver: str, host: HostFacts) -> None:
    """A share is bound with what is mounted below it, without devices and setuid."""
    wanted = BindFlag.RECURSIVE | BindFlag.NOSUID | BindFlag.NODEV
    for one in plan(request(shares=SHARES), host, driver).processes:
        for op in one.jail.root:
            if isinstance(op, Bind) and op.source in (b"/data", b"/data/rw", b"/src"):
                assert op.flags & wanted == wanted


@pytest.mark.parametrize("target", ["/", "/usr", "/proc/x", "/run/x", "/etc"])
def test_drivers_refuse_reserved_places(driver: str, target: str) -> None:
    """A share where nothing may be is refused by every driver's plan."""
    with pytest.raises(ShareError):
        plan(request(shares=(share("/data", target),)), driver=driver)


def test_names_that_are_not_text(driver: str) -> None:
    """Paths that are not UTF-8 are planned as the bytes they are."""
    odd = os.fsdecode(b"/da\xff\nta")
    home = ALICE._replace(home=os.fsdecode(b"/home/\xe4"))
    host = facts(home, tools=TOOLS._replace(agent=odd))
    kernel = KERNEL._replace(path=odd, initrd=odd)
    asked = request(b"\xff", shares=(share(odd),), includes=(Include(odd, "/tmp/\udcff"),))
    made = find_driver(driver).plan(asked, host, kernel)
    sources = {op.source for one in made.processes for op in one.jail.root if isinstance(op, Bind)}
    assert b"/da\xff\nta" in sources
    assert b"HOME=/home/\xe4" in made.command.env


def test_the_commands_limits_go_into_the_plan(driver: str) -> None:
    """Time limits are carried by the plan whatever the driver."""
    made = plan(request(timeout_s=3.0, boot_timeout_s=4.0), driver=driver)
    assert (made.timeout_s, made.boot_timeout_s) == (3.0, 4.0)
    assert plan(request(), driver=driver).boot_timeout_s > 0
    assert plan(request(), driver=driver).timeout_s is None


# The machine.


def test_a_machine_without_wishes() -> None:
    """The default is a gigabyte, or what the host has, and one CPU."""
    assert choose_machine(request(), facts(), KERNEL)[0][:2] == (1024, 1)
    assert choose_machine(request(), facts(memory_mib=600), KERNEL)[0].memory_mib == 600


@pytest.mark.parametrize(
    "options, part",
    [
        ({"memory_mib": 63}, "too little"),
        ({"memory_mib": 1}, "too little"),
        ({"memory_mib": 8193}, "more than this host has (8192 MiB)"),
        ({"cpus": 0}, "0 CPUs"),
        ({"cpus": 65}, "65 CPUs"),
        ({"accelerator": "hax"}, "no accelerator 'hax'"),
        ({"accelerator": ""}, "no accelerator ''"),
    ],
)
def test_machines_that_cannot_be(options: dict[str, Any], part: str) -> None:
    """Memory, CPUs and accelerators no machine could have here are refused, with a hint."""
    with pytest.raises(UsageError) as caught:
        choose_machine(request(**options), facts(), KERNEL)
    assert part in caught.value.message
    assert caught.value.hint


def test_the_limits_themselves_are_allowed() -> None:
    """The least memory, all of the host's, and the most CPUs make a machine."""
    for memory in (64, 8192):
        assert choose_machine(request(memory_mib=memory, cpus=64), facts(), KERNEL)[0].memory_mib == memory


@pytest.mark.parametrize(
    "works, asked, accelerator, notices",
    [
        (True, None, "kvm", 0),
        (False, None, "tcg", 1),
        (None, None, "tcg", 1),
        (True, "tcg", "tcg", 0),
        (False, "tcg", "tcg", 0),
        (None, "kvm", "kvm", 0),
        (True, "kvm", "kvm", 0),
    ],
)
def test_the_accelerator(works: bool | None, asked: str | None, accelerator: str, notices: int) -> None:
    """KVM is used where a trial showed that it works; emulating unasked is said in one line."""
    machine, said = choose_machine(request(accelerator=asked), facts(kvm=works), KERNEL)
    assert machine.accelerator == accelerator
    assert len(said) == notices
    assert all("emulated" in line and "cloche doctor" in line for line in said)


def test_kvm_that_does_not_work_is_refused() -> None:
    """Asking for KVM where it was tried in vain is an error, not a slow machine."""
    with pytest.raises(HostError, match="KVM does not work"):
        choose_machine(request(accelerator="kvm"), facts(kvm=False), KERNEL)


def test_isolation_is_what_the_accelerator_gives() -> None:
    """Plan and capabilities name the isolation of the accelerator in use."""
    for works, word in ((True, "hardware-vm"), (False, "emulated-vm"), (None, "emulated-vm")):
        assert plan(request(), facts(kvm=works)).isolation == word
        assert find_driver("qemu").capabilities(facts(kvm=works)).isolation == word


def test_a_kernel_without_template_is_said() -> None:
    """A kernel that needs the slower machine gives one line that names the remedy."""
    _, said = choose_machine(request(), facts(kvm=True), Q35)
    assert len(said) == 1
    assert "cloche kernel build" in said[0]


def test_qemu_needs_a_kernel() -> None:
    """Without a kernel there is no machine, and the hint says how to get one."""
    with pytest.raises(HostError) as caught:
        find_driver("qemu").plan(request(), facts(), None)
    assert "cloche kernel build" in str(caught.value.hint)


@pytest.mark.parametrize("program, name", [("cloche-fs", "fs-system"), ("qemu", "vmm")])
def test_no_process_without_its_filter(program: str, name: str) -> None:
    """Every process gets the filter of its program; where it was not built, nothing starts."""
    made = plan(request(), facts(filters={**FILTERS, program: b"12345678"}))
    assert process(made, name).jail.seccomp == b"12345678"
    with pytest.raises(HostError, match=f"filter of system calls for {program}"):
        plan(request(), facts(filters={**FILTERS, program: b""}))


@pytest.mark.parametrize("kernel, bus", [(KERNEL, "device"), (Q35, "pci")], ids=["microvm", "q35"])
@pytest.mark.parametrize("kvm", [True, False], ids=["kvm", "tcg"])
def test_the_command_line_of_the_vmm(kernel: object, bus: str, kvm: bool) -> None:
    """The machine has the devices of its bus and no others, no network, no display, and QEMU's own filter."""
    made = find_driver("qemu").plan(request(shares=SHARES, memory_mib=256, cpus=2), facts(kvm=kvm), kernel)  # type: ignore[arg-type]
    argv = process(made, "vmm").argv
    assert b"-nodefaults" in argv
    assert b"-no-user-config" in argv
    assert values(argv, "-sandbox")[0].startswith("on,")
    assert values(argv, "-display") == ["none"]
    assert values(argv, "-netdev") == values(argv, "-nic") == values(argv, "-drive") == []
    assert values(argv, "-m") == ["256M"]
    assert "size=256M" in values(argv, "-object")[0]
    assert values(argv, "-smp") == ["2"]
    assert values(argv, "-kernel") == [KERNEL_PATH]
    assert values(argv, "-initrd") == [INITRD_PATH]
    assert [word.partition(",")[0] for word in values(argv, "-device")] == [
        f"virtio-serial-{bus}",
        "virtserialport",
        f"vhost-user-fs-{bus}",
        f"vhost-user-fs-{bus}",
    ]
    assert values(argv, "-accel")[0].partition(",")[0] == ("kvm" if kvm else "tcg")
    assert values(argv, "-machine")[0].partition(",")[0] == ("microvm" if bus == "device" else "q35")
    assert ("virtio-mmio.force-legacy=false" in values(argv, "-global")) is (bus == "device")
    assert ("no_timer_check" in values(argv, "-append")[0]) is not kvm
    numbers = {descriptor.number for descriptor in process(made, "vmm").descriptors}
    used = {int(word.partition("fd=")[2].partition(",")[0]) for word in values(argv, "-chardev")}
    assert used == numbers


def test_the_kernels_command_line_is_the_documented_one() -> None:
    """Every word that guest/cmdline.md says is always given is given, and no other."""
    text = (Path(__file__).parents[2] / "guest" / "cmdline.md").read_text()
    documented = {
        word.replace("KHZ*10", "20000000").replace("KHZ", "2000000")
        for line in text.partition("## Command line")[2].partition("| word |")[0].splitlines()
        if line.startswith("    ")
        for word in line.split()
    }
    made = find_driver("qemu").plan(request(), facts()._replace(tsc_khz=2_000_000), KERNEL)
    words = set(values(process(made, "vmm").argv, "-append")[0].split())
    slots = {word for word in words if word.startswith("virtio_mmio.device=")}
    # What is said in distress goes to a port that nothing else is said to.
    assert words - slots - documented == {"earlyprintk=ttyS0,keep"}
    assert documented - words == set()


def test_a_kernel_that_brings_its_loopback_up_is_told_to(host: HostFacts) -> None:
    """The parameter is given to a kernel that knows it, and only then is the step left out."""
    for abilities in ((), (LO_ON_DEMAND,)):
        made = find_driver("qemu").plan(request(), host, KERNEL._replace(abilities=abilities))
        words = values(process(made, "vmm").argv, "-append")[0].split()
        assert words.count(LO_ON_DEMAND) == len(abilities)
        assert any(isinstance(step, Loopback) for step in made.setup) is not bool(abilities)


def test_a_guest_without_a_source_of_randomness_is_given_some() -> None:
    """Only an emulated CPU is known to have one."""
    for works in (True, False):
        setup = plan(request(), facts(kvm=works)).setup
        assert any(isinstance(step, Entropy) for step in setup) is works


def test_a_machine_without_shares_has_one_file_system() -> None:
    """The second file server exists exactly if something is shared or included."""
    expected: tuple[tuple[dict[str, Any], list[str]], ...] = (
        ({}, ["vmm", "fs-system"]),
        ({"shares": SHARES}, ["vmm", "fs-system", "fs-shares"]),
        ({"includes": INCLUDES}, ["vmm", "fs-system", "fs-shares"]),
    )
    for options, names in expected:
        made = plan(request(**options))
        assert [one.name for one in made.processes] == names
        assert len(values(process(made, "vmm").argv, "-device")) == 1 + len(names)


def test_kvm_is_a_device_of_the_vmm_alone() -> None:
    """Only under KVM, and only in the VMM's jail, is there /dev/kvm, and it can be opened there."""
    for works in (True, False):
        for one in plan(request(shares=SHARES), facts(kvm=works)).processes:
            bound = [op for op in one.jail.root if isinstance(op, Bind) and op.source == b"/dev/kvm"]
            assert len(bound) == (works and one.name == "vmm")
            assert not any(op.flags & (BindFlag.NODEV | BindFlag.READ_ONLY) for op in bound)


def test_who_serves_files(host: HostFacts) -> None:
    """An ordinary user's servers translate ids and have no capability; root's share server may give files away."""
    made = plan(request(shares=SHARES), host)
    system, shares, vmm = (process(made, name) for name in ("fs-system", "fs-shares", "vmm"))
    assert b"--readonly" in system.argv
    assert b"--readonly" not in shares.argv
    assert vmm.jail.keep_caps == 0
    assert system.jail.keep_caps == (CAP_DAC_READ_SEARCH if host.user.uid == 0 else 0)
    reading = process(plan(request(shares=SHARES[:1]), host), "fs-shares")
    assert b"--readonly" in reading.argv
    assert reading.jail[1:4] == system.jail[1:4]
    if host.user.uid == 0:
        assert values(system.argv, "--ids") == values(shares.argv, "--ids") == ["host"]
        assert shares.jail.keep_caps & CAP_SETUID
    else:
        assert values(system.argv, "--ids") == ["squash-root"]
        assert values(shares.argv, "--ids") == ["caller:1000:1000"]
        assert shares.jail.keep_caps == 0
    assert (7, 4096, 4096) in system.jail.rlimits
    assert (7, 4096, 4096) in shares.jail.rlimits


def test_writable_shares_are_remembered() -> None:
    """The plan says whether writes must reach the host before the machine goes."""
    assert plan(request(shares=SHARES)).writable_shares
    assert not plan(request(shares=SHARES[:1])).writable_shares
    assert not plan(request(includes=INCLUDES)).writable_shares


def test_includes_lie_beside_the_shares() -> None:
    """A copy's source is bound read-only and whole under its name in the guest, and copied from there."""
    made = plan(request(shares=SHARES, includes=(Include("/x/dir", "/opt/y/there"),)))
    bound = next(
        op for op in process(made, "fs-shares").jail.root if isinstance(op, Bind) and op.source == b"/x/dir"
    )
    assert bound.path == b"/stage/i0/there"
    assert bound.flags == BindFlag.READ_ONLY | BindFlag.NOSUID | BindFlag.NODEV | BindFlag.RECURSIVE
    assert CopyTree(b"/run/cloche-shares/i0", b"/opt/y", 1000, 1000) in made.setup


def test_the_machine_id_is_made_when_the_plan_is_carried_out() -> None:
    """The plan holds zeros for the machine-id: the launcher replaces them in this very file."""
    ids = [op for op in process(plan(request()), "fs-system").jail.root if isinstance(op, File)]
    assert [op.content for op in ids if op.path.endswith(b"/etc/machine-id")] == [b"0" * 32 + b"\n"]


@pytest.mark.parametrize(
    "tools, usable, part",
    [
        (TOOLS, True, "10.0"),
        (TOOLS._replace(qemu_version=(7, 2)), True, "7.2"),
        (TOOLS._replace(qemu_version=(7, 1)), False, "too old"),
        (TOOLS._replace(qemu_version=(0, 0)), False, "does not say its version"),
        (TOOLS._replace(qemu="", qemu_version=(0, 0)), False, "not installed"),
    ],
)
def test_whether_qemu_can_be_used(tools: object, usable: bool, part: str) -> None:
    """A QEMU that is missing, too old or silent is no use, and the hint says what to do."""
    status = find_driver("qemu").status(facts()._replace(tools=tools))  # type: ignore[arg-type]
    assert status.usable is usable
    assert part in status.detail
    assert bool(status.hint) is not usable


# The container.


def test_refusals_are_errors_with_a_message() -> None:
    """Whatever a driver refuses is one of cloche's own errors."""
    refused: tuple[dict[str, Any], ...] = ({"user": "bob"}, {"env": ((b"", b""),)}, {"workdir": ""})
    for name in DRIVER_NAMES:
        for options in refused:
            with pytest.raises(ClocheError):
                plan(request(**options), driver=name)


# Parts of jails that are given up


def test_the_filters_can_be_given_up() -> None:
    """Without `seccomp` no filter is put on from outside and QEMU puts on none, and nothing else changes."""
    asked = request(shares=(share("/data"),))
    whole, without = plan(asked), plan(asked._replace(insecure=("seccomp",)))
    assert (whole.insecure, without.insecure) == ((), ("seccomp",))
    for one, other in zip(whole.processes, without.processes, strict=True):
        assert one.jail.seccomp
        assert other.jail == one.jail._replace(seccomp=b"")
        sandbox = values(one.argv, "-sandbox")
        assert bool(sandbox) == (one.name == "vmm")
        rest = [word for word in one.argv if word.decode() not in ("-sandbox", *sandbox)]
        assert list(other.argv) == rest


def test_namespaces_can_be_given_up() -> None:
    """Without `namespaces` those stay that the stage and the end of a domain need."""
    asked = request()
    whole, without = plan(asked), plan(asked._replace(insecure=("namespaces",)))
    for one, other in zip(whole.processes, without.processes, strict=True):
        kept = one.jail.namespaces & (Namespace.MOUNT | Namespace.PID)
        assert kept == Namespace.MOUNT | Namespace.PID
        assert other == one._replace(jail=one.jail._replace(namespaces=kept))


def test_ids_can_be_given_up() -> None:
    """Without `ids` root's processes stay root's; where there are no others to take, that has to be said."""
    host = facts(ROOT)
    whole, without = plan(request(), host), plan(request(insecure=("ids",)), host)
    for one, other in zip(whole.processes, without.processes, strict=True):
        assert other == one._replace(jail=one.jail._replace(uid=AS_IS, gid=AS_IS))
    nowhere = host._replace(ids=None)
    assert plan(request(insecure=("ids",)), nowhere).processes == without.processes
    with pytest.raises(HostError, match="no ids") as caught:
        plan(request(), nowhere)
    assert "--insecure-no-jail=ids" in str(caught.value.hint)
    assert plan(request(insecure=("ids",))).processes == plan(request()).processes


def test_a_domain_has_enough_ids() -> None:
    """No two processes of two domains get the same id as long as there are ids for both."""
    ids = facts(ROOT).ids
    assert ids is not None
    numbers = {
        ids.number(domain, process) for domain in range(ids.domains) for process in range(IDS_PER_DOMAIN)
    }
    assert len(numbers) == ids.domains * IDS_PER_DOMAIN
    assert min(numbers) == ids.first
    assert ids.number(ids.domains + 1, 2) == ids.number(1, 2)
    disks = tuple(Disk(f"d{index}", f"/{index}.img") for index in range(16))
    most = find_driver("qemu").plan(request(shares=SHARES, disks=disks), facts(ROOT), Q35)
    assert len(most.processes) < IDS_PER_DOMAIN


def test_kvm_is_reached_by_a_group() -> None:
    """A VMM of root's has the group that may use KVM where it uses KVM, and else one of its own."""
    for works, group, expected in ((True, 108, 108), (True, OWN, OWN), (False, 108, OWN)):
        made = plan(request(), facts(ROOT, kvm=works)._replace(kvm_group=group))
        assert process(made, "vmm").jail.gid == expected
        assert process(made, "fs-system").jail.gid == OWN
    assert process(plan(request(), facts(kvm=True)._replace(kvm_group=108)), "vmm").jail.gid == AS_IS


def test_nothing_else_can_be_given_up() -> None:
    """Any other part is refused, with the list, and so is all of it by the driver that has none to spare."""
    with pytest.raises(UsageError, match="'root'") as caught:
        plan(request(insecure=("seccomp", "root")))
    assert "seccomp, namespaces, cgroups and ids" in str(caught.value.hint)
    with pytest.raises(UsageError, match="--insecure-no-jail"):
        plan(request(insecure=("seccomp",)), driver="bwrap")
