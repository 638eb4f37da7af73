"""What ``cloche audit`` makes of what the kernel says: whatever is missing is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cloche.cli.audit import as_json, in_words
from cloche.domain import find
from cloche.domain.audit import Audit, capability_names, judge
from cloche.domain.find import find_domain
from cloche.drivers.qemu.board import RECONNECT_DIRECTORY
from cloche.drivers.registry import find_driver
from cloche.errors import DomainError
from cloche.host.fdlook import OpenFile
from cloche.host.procfs import NAMESPACES, Mount, Process
from cloche.host.rundir import Running
from cloche.model.audit import ALL, hold_of_program
from cloche.model.jail import AS_IS, OWN, Bind, BindFlag, JailFlag, Namespace
from cloche.model.machine import Devices
from cloche.model.request import Disk, Network, NetworkKind
from support.plans import ALICE, KERNEL, ROOT, facts, request, share

if TYPE_CHECKING:
    from cloche.model.plan import ProcessPlan

DOCS = Path(__file__).resolve().parents[2] / "docs/audit.md"

# The policies and the plans


def planned(driver: str, *, as_root: bool, devices: str = Devices.PROCESS) -> tuple[ProcessPlan, ...]:
    """Return the processes of a plan with a writable share, and with every other device where there can be any."""
    disks = (Disk("home", "/disk.img"),) if driver == "qemu" else ()
    apart = driver == "qemu" and devices == Devices.PROCESS
    network = Network("/peer.sock", "02:00:00:00:00:01") if apart else None
    asked = request(
        network=network,
        shares=(share("/data", writable=True),),
        disks=disks,
        hwrng=driver == "qemu",
        vsock="/run/vsock" if apart else "",
        devices=devices,
    )
    kernel = KERNEL if driver == "qemu" else None
    return find_driver(driver).plan(asked, facts(ROOT if as_root else ALICE), kernel).processes


PLANNED = [
    *(
        ("qemu", process, as_root)
        for as_root in (False, True)
        for devices in (Devices.PROCESS, Devices.BUNDLED, Devices.VMM)
        for process in planned("qemu", as_root=as_root, devices=devices)
    ),
    *(("bwrap", process, False) for process in planned("bwrap", as_root=False)),
    *(
        ("qemu", process, as_root)
        for as_root in (False, True)
        for process in find_driver("qemu")
        .plan(
            request(network=Network("", "02:00:00:00:00:01", kind=NetworkKind.USER)),
            facts(ROOT if as_root else ALICE),
            KERNEL,
        )
        .processes
        if process.name == "passt"
    ),
]


@pytest.mark.parametrize("driver, process, as_root", PLANNED)
def test_a_plan_gives_what_its_policy_asks(driver: str, process: ProcessPlan, *, as_root: bool) -> None:
    """What audit asks of a process is what its planned jail gives it: no less, and in capabilities no more either."""
    program = Path(process.executable or process.argv[0].decode()).name
    binaries = {name: f"cloche-{name}" for name in ("fs", "disk", "net", "rng", "vsock", "bundle")}
    hold = hold_of_program(binaries.get(program, program), process.argv, as_root=as_root)
    assert hold is not None
    assert hold.role == {"disk-home": "disk"}.get(process.name, process.name)
    jail = process.jail
    assert hold.capabilities == jail.keep_caps
    assert hold.no_new_privs == bool(jail.flags & JailFlag.NO_NEW_PRIVS)
    assert hold.session == bool(jail.flags & JailFlag.SETSID)
    assert not jail.flags & (JailFlag.KEEP_ROOT | JailFlag.ROOT_WRITABLE)
    assert (hold.filters > 1) == bool(jail.seccomp)
    bits = {"mnt": "MOUNT"}
    own = {name for name in NAMESPACES if jail.namespaces & getattr(Namespace, bits.get(name, name.upper()))}
    # The warden has these already; a device has a pid namespace of its own all the same.
    given = own | {"user", "mnt", "pid"}
    assert set(hold.namespaces) == given
    assert ("pid" in own) == hold.own_root
    # One alone stands in the host's network.
    assert (process.name == "passt") == (driver == "qemu" and hold.namespaces != ALL)
    # The exec makes every program dumpable; ours undo it, and of the others it is not asked.
    assert hold.closed == (driver == "qemu" and process.name != "vmm")
    assert jail.flags & JailFlag.NOT_DUMPABLE or any(limit == (4, 0, 0) for limit in jail.rlimits)
    ids = OWN if as_root and hold.own_id else AS_IS
    assert (jail.uid, jail.gid) == (ids, ids)
    gives_owners = process.name == "fs-shares" or bool(hold.devices and as_root)
    assert hold.own_id == (driver == "qemu" and not gives_owners)
    for op in jail.root:
        if hold.writable is not None and isinstance(op, Bind) and not op.flags & BindFlag.READ_ONLY:
            assert op.path.decode().startswith(hold.writable)
    if process.name == "vmm" and hold.devices:
        assert hold.calls == "qemu-devices"
    elif process.name == "vmm" and RECONNECT_DIRECTORY.encode() in b" ".join(process.argv):
        assert f"{RECONNECT_DIRECTORY}/" in (hold.writable or ())
        assert hold.calls == "qemu-reconnect"
        plain = hold_of_program(program, (), as_root=as_root)
        assert plain is not None
        assert plain.calls == "qemu"
        assert f"{RECONNECT_DIRECTORY}/" not in (plain.writable or ())


# A domain as it should be, and what may be wrong with it


def warden(**changes: Any) -> Process:
    """Return what the kernel says of a warden of alice's, with changes."""
    plain = Process(
        pid=100,
        parent=99,
        start=1,
        name="cloche-warden",
        program="/bin/cloche-warden",
        argv=(b"cloche-warden",),
        uids=(1000,) * 4,
        gids=(1000,) * 4,
        groups=(1000,),
        capabilities=(0, 0, 0, (1 << 41) - 1, 0),
        no_new_privs=False,
        seccomp=2,
        filters=1,
        namespaces=dict.fromkeys(NAMESPACES, 1),
        pids=(100,),
        sessions=(100,),
        id_map="0 0 4294967295",
        dumpable=True,
        core_limit=None,
        threads=1,
        rss_kib=1024,
        pss_kib=500,
        files=(OpenFile(0, "/dev/null", "rw"),),
        mounts=(Mount(1, "8:1", "/", "ext4", True), Mount(9, "0:9", "/tmp", "tmpfs", True)),
        hidden=(),
    )
    return plain._replace(**changes)


def init(**changes: Any) -> Process:
    """Return what an ordinary user sees of PID 1."""
    plain = warden(
        pid=101,
        parent=100,
        name="cloche-warden/1",
        program="",
        filters=2,
        namespaces={},
        pids=(101, 1),
        sessions=(101, 1),
        id_map="1000 1000 1",
        dumpable=False,
        pss_kib=None,
        files=None,
        mounts=(Mount(2, "8:1", "/", "ext4", True),),
        hidden=("namespaces", "program file", "open files", "shared memory"),
    )
    return plain._replace(**changes)


def device(**changes: Any) -> Process:
    """Return a device process that is held as it should be."""
    plain = warden(
        pid=102,
        parent=101,
        name="cloche-rng",
        program="/bin/cloche-rng",
        argv=(b"cloche-rng",),
        capabilities=(0,) * 5,
        no_new_privs=True,
        filters=4,
        namespaces=dict.fromkeys(NAMESPACES, 2),
        pids=(102, 2, 1),
        sessions=(102, 2, 1),
        id_map="1000 1000 1",
        dumpable=False,
        core_limit=1,
        mounts=(Mount(3, "0:30", "/", "tmpfs", False), Mount(4, "0:31", "/proc", "proc", True)),
    )
    return plain._replace(**changes)


def failures(*processes: Process) -> list[str]:
    """Return what fails in a domain of a warden, its PID 1 and these."""
    return [what for one in judge((warden(), init(), *processes)) for what in one.failures]


def shared(*names: str) -> dict[str, int]:
    """Return namespaces of which these are the host's."""
    return {name: 1 if name in names else 2 for name in NAMESPACES}


def test_all_is_well() -> None:
    """A domain as it should be has no failures; what the supervisor was held by itself counts for nothing."""
    audited = judge((warden(), init(), device()))
    assert [one.role for one in audited] == ["warden", "warden/1", "rng"]
    assert [one.failures for one in audited] == [(), (), ()]
    assert [one.filters for one in audited] == [0, 1, 3]
    assert [one.own for one in audited] == [(), ("user", "mnt", "pid"), NAMESPACES]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "ids": ({"uids": (1000, 0, 0, 0)}, "has the user ids 1000/0/0/0, not those of its owner"),
    "group": ({"gids": (0,) * 4}, "has the group ids 0/0/0/0, not those of its owner"),
    "capability": (
        {"capabilities": (0, 1 << 21, 0, 1 << 12 | 1 << 63, 0)},
        "has capabilities that its policy does not give it: net_admin, sys_admin, 63 (permitted, bounding)",
    ),
    "all capabilities": (
        {"capabilities": (0, 0, 0, (1 << 41) - 1, 0)},
        "has capabilities that its policy does not give it: 41 of them (bounding)",
    ),
    "no_new_privs": (
        {"no_new_privs": False},
        "could gain rights by executing a program (no_new_privs is off)",
    ),
    "filters": ({"filters": 3}, "has 2 of the 3 filters of system calls that its policy needs"),
    "namespaces": ({"namespaces": shared("net", "ipc")}, "shares namespaces with the host: net, ipc"),
    "unreadable namespace": (
        {"namespaces": {name: 2 for name in NAMESPACES if name != "net"}},
        "shares namespaces with the host: net",
    ),
    "pid": (
        {"pids": (102, 2), "sessions": (102, 2)},
        "sees the other processes of its domain (its pid namespace is the domain's)",
    ),
    "dumpable": ({"dumpable": True}, "can be looked into by others of its user (it is dumpable)"),
    "who knows": ({"dumpable": None}, "can be looked into by others of its user (it is dumpable)"),
    "core": ({"core_limit": 4096}, "may leave a core file"),
    "endless core": ({"core_limit": None}, "may leave a core file"),
    "session": ({"sessions": (100, 0, 0)}, "has no session of its own"),
    "writable root": (
        {"mounts": (Mount(3, "0:30", "/", "tmpfs", True),)},
        "has a root that is not a read-only one of its own",
    ),
    "the host's root": (
        {"mounts": (Mount(3, "8:1", "/", "ext4", False),)},
        "has a root that is not a read-only one of its own",
    ),
    "no root": ({"mounts": ()}, "has a root that is not a read-only one of its own"),
    "writable mount": (
        {"mounts": (Mount(3, "0:30", "/", "tmpfs", False), Mount(4, "8:1", "/st\x1bage", "ext4", True))},
        "can write to /st\\x1bage",
    ),
    "the host's tmpfs": (
        {"mounts": (Mount(3, "0:30", "/", "tmpfs", False), Mount(4, "0:9", "/tmp", "tmpfs", True))},
        "can write to /tmp",
    ),
    "unknown program": (
        {"program": "/usr/bin/nc\x1b"},
        "executes /usr/bin/nc\\x1b, for which there is no policy",
    ),
    "a process of a device's": (
        {"parent": 105},
        "was started by the process 105 and not by the warden",
    ),
    "before its exec": (
        {"program": "/bin/cloche-warden"},
        "has not executed its program yet; run the audit again",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line(case: str) -> None:
    """Everything that may be missing from a device's jail is named, alone."""
    changes, expected = WRONG[case]
    assert failures(device(**changes)) == [expected]


def test_pid_1_is_held_too() -> None:
    """PID 1 must have its filter and its namespaces, and be closed to others of its user."""
    audited = judge((warden(), init(filters=1, dumpable=True, pids=(101,), sessions=(101,)), device()))
    assert audited[1].failures == (
        "has 0 of the 1 filters of system calls that its policy needs",
        "shares namespaces with the host: pid",
        "can be looked into by others of its user (it is dumpable)",
    )


def test_capabilities_of_shares_are_roots_alone() -> None:
    """The file server of shares may give files their owner where root started it; nobody else may."""
    mask = 0xDB
    owner = {"capabilities": (mask,) * 5, "uids": (0,) * 4, "gids": (0,) * 4}
    shares = device(program="/bin/cloche-fs", argv=(b"cloche-fs", b"--fd", b"3"), **owner)
    reading = shares._replace(argv=(*shares.argv, b"--readonly"), uids=(7,) * 4, gids=(7,) * 4, groups=())
    root = warden(uids=(0,) * 4, gids=(0,) * 4)
    pid_1 = init(uids=(0,) * 4, gids=(0,) * 4)
    assert judge((root, pid_1, shares))[2].failures == ()
    assert "capabilities" in judge((root, pid_1, reading))[2].failures[0]
    # Who only reads has one right, and not root's id.
    assert judge((root, pid_1, reading._replace(capabilities=(1 << 2,) * 5)))[2].failures == ()
    mine = shares._replace(uids=(1000,) * 4, gids=(1000,) * 4)
    assert "capabilities" in failures(mine)[0]


def test_devices_of_roots_have_ids_of_their_own() -> None:
    """Where root is the owner, no device runs under an id of root's, and no two under the same."""
    nobodys = {"groups": (), "capabilities": (0,) * 5}
    root = warden(uids=(0,) * 4, gids=(0,) * 4)
    pid_1 = init(uids=(0,) * 4, gids=(0,) * 4)
    one = device(uids=(7,) * 4, gids=(7,) * 4, **nobodys)
    two = device(pid=103, uids=(8,) * 4, gids=(8,) * 4, **nobodys)
    assert [found.failures for found in judge((root, pid_1, one, two))] == [()] * 4
    for wrong in ({"uids": (7, 7, 0, 7)}, {"gids": (0,) * 4}, {"groups": (0,)}):
        assert judge((root, pid_1, one._replace(**wrong)))[2].failures == ("runs under an id of root's",)
    same = judge((root, pid_1, one, two._replace(uids=(7,) * 4)))
    assert [found.failures for found in same[2:]] == [("shares its user id 7 with another process",)] * 2
    # An ordinary user's are the owner's, whatever the others have.
    assert failures(device(), device(pid=103)) == []


def test_what_is_in_a_container_is_held_as_such() -> None:
    """Below bubblewrap every program, whatever its name, must be in namespaces of its own without capabilities."""
    bwrap = device(
        program="/usr/bin/bwrap",
        filters=2,
        namespaces=shared("net", "ipc", "uts", "cgroup"),
        pids=(102, 2),
        sessions=(102, 2),
        dumpable=True,
    )
    program = device(pid=103, parent=102, program="/usr/bin/qemu-system-x86_64", filters=2, dumpable=True)
    below = program._replace(pid=104, parent=103, program="", sessions=(102, 2, 1))
    audited = judge((warden(), init(), bwrap, program, below))
    assert [one.role for one in audited[2:]] == ["container", "contained", "contained"]
    assert [one.failures for one in audited] == [()] * 5
    weak = program._replace(namespaces=shared("net"), capabilities=(0, 1, 1, 1, 0))
    assert len(judge((warden(), init(), bwrap, weak))[3].failures) == 2


def test_shares_may_be_written_to() -> None:
    """A share may be writable in the file server of shares, anything else of the host nowhere."""
    root = Mount(3, "0:30", "/", "tmpfs", False)
    inside, outside = Mount(4, "8:1", "/stage/0", "ext4", True), Mount(5, "8:1", "/stage", "ext4", True)
    shares = device(program="/bin/cloche-fs", argv=(b"cloche-fs",), mounts=(root, inside))
    assert failures(shares) == []
    assert failures(shares._replace(mounts=(root, outside))) == ["can write to /stage"]
    system = shares._replace(argv=(b"cloche-fs", b"--cache", b"forever", b"--readonly"))
    assert failures(system) == ["can write to /stage/0"]


def test_capabilities_have_names() -> None:
    """The kernel's numbers are named as it names them."""
    assert capability_names(0xDB) == ("chown", "dac_override", "fowner", "fsetid", "setgid", "setuid")
    assert capability_names(1 << 40 | 1 << 21) == ("sys_admin", "checkpoint_restore")
    assert len(capability_names((1 << 41) - 1)) == 41


# Which domain

RUNNING = tuple(Running(name, 1, 1, ()) for name in ("aa11", "aa22", "bb33"))


@pytest.mark.parametrize(
    "running, wanted, found",
    [
        (RUNNING, "aa11", "aa11"),
        (RUNNING, "b", "bb33"),
        (RUNNING[:1], None, "aa11"),
        (RUNNING[:1], "aa", "aa11"),
    ],
)
def test_a_domain_is_found(
    running: tuple[Running, ...], wanted: str | None, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its name, by a beginning of it that no other has, or because there is no other."""
    monkeypatch.setattr(find, "find_running", lambda: running)
    assert find_domain(wanted).ident == found


@pytest.mark.parametrize(
    "running, wanted, message, hint",
    [
        ((), None, "no domain of yours is running", "cloche run"),
        (RUNNING, None, "3 domains are running", "aa11, aa22, bb33"),
        (RUNNING, "aa", "more than one of your running domains begins with aa", "aa11, aa22."),
        (RUNNING, "cc", "you have no running domain cc", "aa11, aa22, bb33"),
        (RUNNING, "", "you have no running domain ", "aa11"),
        ((), "\x1b", "you have no running domain \\x1b", "None is running."),
    ],
)
def test_no_domain_is_guessed(
    running: tuple[Running, ...], wanted: str | None, message: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one that is meant for certain, those there are are listed."""
    monkeypatch.setattr(find, "find_running", lambda: running)
    with pytest.raises(DomainError) as caught:
        find_domain(wanted)
    assert caught.value.message == message
    assert hint in str(caught.value.hint)


# What is printed


def audited(*processes: Process, insecure: tuple[str, ...] = ()) -> Audit:
    """Return the audit of a domain of a warden, its PID 1 and these."""
    return Audit("0123456789ab", 99, insecure, judge((warden(), init(), *processes)))


def keys(value: object) -> set[str]:
    """Return every key in what ``--json`` prints."""
    if isinstance(value, dict):
        return set(value) | {key for inner in value.values() for key in keys(inner)}
    return {key for inner in value for key in keys(inner)} if isinstance(value, list) else set()


def test_json_is_documented() -> None:
    """Everything ``--json`` prints stands in docs/audit.md, and what cannot be read is null."""
    printed = json.loads(json.dumps(as_json(audited(device()))))
    text = DOCS.read_text()
    assert [key for key in sorted(keys(printed)) if f"`{key}`" not in text] == []
    first, second, _ = printed["processes"]
    assert first["namespaces"]["net"] == {"id": 1, "own": False}
    assert second["namespaces"]["net"] == {"id": None, "own": None}
    assert second["namespaces"]["pid"] == {"id": None, "own": True}
    assert (second["files"], second["program"], second["memory"]["pss_kib"]) == (None, None, None)
    assert printed["ok"] is True


def test_failures_are_red_on_a_terminal() -> None:
    """On a terminal what fails, and what was given up, is red; elsewhere nothing has a colour."""
    bad = audited(device(filters=1), insecure=("seccomp",))
    plain = in_words(bad).splitlines()
    colored = in_words(bad, color=True).splitlines()
    red = [line for line, shown in zip(plain, colored, strict=True) if shown == f"\033[31m{line}\033[0m"]
    assert [line.split()[0] for line in red] == ["rng", "GIVEN", "FAILED"]
    assert "FAILED rng (102) has 0 of the 3 filters of system calls that its policy needs" in plain
    assert all(line == shown for line, shown in zip(plain, colored, strict=True) if line not in red)
    good = audited(device())
    assert in_words(good, color=True) == in_words(good)
    assert "all 3 processes are held as their policies say" in in_words(good)
    assert (
        "warden/1 (101): only root can read: namespaces, program file, open files, shared memory"
        in in_words(good)
    )


def test_names_a_process_chose_are_escaped() -> None:
    """What a process may choose itself (its arguments, names of its files) neither moves a cursor nor forges a line."""
    hostile = device(
        name="a\x1b[2J\nb", argv=(b"cloche-rng", b"\x1b]0;x\x07"), files=(OpenFile(3, "/x\n\x1b[31m", "r"),)
    )
    bad = audited(hostile)
    text = in_words(bad, files=True)
    assert "     3  r    /x\\n\\x1b[31m" in text
    assert all(char.isprintable() for line in text.split("\n") for char in line)
    printed = json.dumps(as_json(bad), ensure_ascii=False)
    assert printed.isprintable()
