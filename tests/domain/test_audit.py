"""``cloche audit`` on running domains: what is missing in a jail, behind the plan's back, is seen, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cloche.model.machine import NOT_APART
from support.errors import check_error
from support.wardens import ROLES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from support.runs import Runner

SCRIPT = Path(__file__).with_name("weakened.py").read_text()


@pytest.fixture(params=ROLES)
def caller(request: pytest.FixtureRequest) -> Runner:
    """Provide root and an ordinary user, one after the other."""
    name = "cloche" if request.param == "ordinary" else "cloche_as_caller"
    runner: Runner = request.getfixturevalue(name)
    return runner


@contextmanager
def running(
    caller: Runner, share: Path, *weakenings: str, env: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Provide the name of a running domain with these weakenings."""
    argv = ["/usr/bin/python3", "-IS", "-c", SCRIPT, str(caller.user.project / "src"), str(share)]
    # That the supervisor would not start some of these is tested in tests/security/test_filters_counted.py.
    process = caller.user.popen([*argv, *weakenings, "unchecked"], stdin=subprocess.PIPE, env=env)
    try:
        assert process.stdout is not None
        name = process.stdout.readline().decode().strip()
        assert name, process.communicate()[1]
        yield name
    finally:
        process.communicate()
    assert process.returncode == 0


def audit(caller: Runner, name: str) -> dict[str, Any]:
    """Return what ``cloche audit --json`` says of a domain; its status must say the same."""
    done = caller("audit", "--json", name)
    assert done.stderr == b""
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if found["ok"] else 1)
    assert found["ok"] == (found["failures"] == [])
    return found


def failures(found: dict[str, Any]) -> set[str]:
    """Return what fails, without process ids."""
    return {f"{one['role']} {what}" for one in found["processes"] for what in one["failures"]}


def test_a_domain_as_it_should_be(caller: Runner, folder: Path) -> None:
    """Every process is there, held as its policy says, with what is known of it; the words say the same as the JSON."""
    with running(caller, folder) as name:
        found = audit(caller, name)
        words = caller("audit", name)
    assert found["failures"] == []
    assert (found["domain"], found["insecure"]) == (name, [])
    roles = {one["role"]: one for one in found["processes"]}
    assert list(roles) == ["supervisor", "warden", "warden/1", "vmm", "fs-system", "fs-shares", "disk"]
    devices = [roles[role] for role in ("fs-system", "fs-shares", "disk", "vmm")]
    for one in devices:
        assert one["seccomp"]["own_filters"] == 3
        assert one["seccomp"]["calls_allowed"] > 10
        assert all(namespace["own"] for namespace in one["namespaces"].values())
        assert one["no_new_privs"]
        assert one["not_readable"] == []
        assert {file["fd"] for file in one["files"]} >= {0, 1, 2, 3}
        assert any("socket" in file["target"] for file in one["files"])
        assert one["memory"]["pss_kib"] > 0
    assert [one["dumpable"] for one in devices] == [False, False, False, True]
    ordinary = caller.user.entry.pw_uid != 0
    # PID 1 came from outside of the domain's user namespace: only root may look into it.
    assert ("open files" in roles["warden/1"]["not_readable"]) == ordinary
    assert any(file["target"].endswith(".img") for file in roles["disk"]["files"])
    # Nobody has looked at this image: what is allowed is the room for notes on requests in flight.
    assert roles["disk"]["file_limit"] == 32 << 10
    assert roles["vmm"]["file_limit"] is None
    if ordinary:
        assert roles["vmm"]["uids"] == [caller.user.entry.pw_uid] * 4
    else:
        assert len({roles[role]["uids"][0] for role in ("fs-system", "disk", "vmm")} - {0}) == 3
    assert roles["vmm"]["capabilities"]["bounding"] == []
    assert bool(roles["fs-shares"]["capabilities"]["effective"]) != ordinary
    assert words.returncode == 0
    table = words.stdout.decode()
    assert roles["supervisor"]["pid"] == found["supervisor"]
    assert roles["supervisor"]["seccomp"]["own_filters"] == 1
    assert "all 7 processes are held as their policies say" in table
    assert "FAILED" not in table
    assert "\033" not in table
    for one in found["processes"]:
        assert f"{one['role']:<10}  {one['pid']}" in table


@pytest.mark.parametrize("devices, roles", [("bundled", ["vmm", "devices"]), ("vmm", ["vmm"])])
def test_devices_that_are_not_apart_are_said_to_be(
    caller: Runner, folder: Path, devices: str, roles: list[str]
) -> None:
    """One process holds what several do elsewhere: it is held as such, nothing fails, and what is given up is said."""
    with running(caller, folder, f"arrangement:{devices}") as name:
        found = audit(caller, name)
        words = caller("audit", name).stdout.decode()
    assert found["failures"] == []
    assert found["devices"] == devices
    assert [one["role"] for one in found["processes"]] == ["supervisor", "warden", "warden/1", *roles]
    assert f"GIVEN UP by --devices={devices}: {NOT_APART[devices]}" in words
    all_of_it = found["processes"][-1]
    assert any(file["target"].endswith(".img") for file in all_of_it["files"])
    assert any(mount["path"] == "/stage/shares/0" and mount["writable"] for mount in all_of_it["mounts"])
    assert bool(all_of_it["capabilities"]["effective"]) == (caller.user.entry.pw_uid == 0)


NO_FILTER = "has 2 of the 3 filters of system calls that its policy needs"
UNCONFINED = {
    "supervisor has 0 of the 1 filters of system calls that its policy needs",
    "supervisor could gain rights by executing a program (no_new_privs is off)",
}
ALL_SETS = "inheritable, permitted, effective, bounding, ambient"
WEAKENED = {
    "filter, capability, pid": (
        ("vmm:filter", "disk-home:capability", "fs-shares:pid"),
        {
            f"vmm {NO_FILTER}",
            f"disk has capabilities that its policy does not give it: sys_admin ({ALL_SETS})",
            "fs-shares sees the other processes of its domain (its pid namespace is the domain's)",
        },
    ),
    "net, stage, device's filter": (
        ("vmm:net", "fs-system:stage", "fs-shares:filter", "disk-home:net"),
        {
            "disk shares namespaces with the host: net",
            "vmm shares namespaces with the host: net",
            "fs-system can write to /stage/usr",
            f"fs-shares {NO_FILTER}",
        },
    ),
    "no_new_privs, root, session and core": (
        (
            "vmm:filter",
            "vmm:sandbox",
            "vmm:no_new_privs",
            "fs-system:root",
            "fs-shares:session",
            "fs-shares:core",
        ),
        {
            "vmm has 1 of the 3 filters of system calls that its policy needs",
            "vmm could gain rights by executing a program (no_new_privs is off)",
            "fs-system has a root that is not a read-only one of its own",
            "fs-shares has no session of its own",
            "fs-shares may leave a core file",
        },
    ),
    "the supervisor's filter": (("unconfined",), UNCONFINED),
    "QEMU's own filter": (("vmm:sandbox",), {f"vmm {NO_FILTER}"}),
}


def test_another_filter_is_seen_by_root(caller: Runner, folder: Path) -> None:
    """A filter in the place of a policy's is seen by root; to others the kernel only counts them, which is said."""
    with running(caller, folder, "vmm:swap", "disk-home:swap", "fs-system:ids") as name:
        found = audit(caller, name)
        words = caller("audit", name).stdout.decode()
    ordinary = caller.user.entry.pw_uid != 0
    assert [one["seccomp"]["readable"] for one in found["processes"] if one["role"] == "vmm"] == [
        not ordinary
    ]
    what = "has another filter of system calls from outside than its policy's"
    expected = {f"vmm {what}", f"disk {what}", "fs-system runs under an id of root's"}
    assert failures(found) == (set() if ordinary else expected)
    assert ("only root can read\n" in words) == ordinary


@pytest.mark.parametrize("case", WEAKENED)
def test_what_is_missing_is_seen(caller: Runner, folder: Path, case: str) -> None:
    """Each part that was taken out of a jail behind the plan's back is one line, and nothing else is."""
    weakenings, expected = WEAKENED[case]
    with running(caller, folder, *weakenings) as name:
        found = audit(caller, name)
        words = caller("audit", name)
    assert failures(found) == expected
    assert len(found["failures"]) == len(expected)
    assert words.returncode == 1
    assert words.stdout.count(b"\nFAILED ") == len(expected)


def test_what_was_given_up_is_shown(caller: Runner, folder: Path) -> None:
    """Parts left out with --insecure-no-jail are named, and are failures like any other."""
    with running(caller, folder, "insecure:seccomp", "insecure:namespaces") as name:
        found = audit(caller, name)
        words = caller("audit", name).stdout.decode()
    assert found["insecure"] == ["seccomp", "namespaces"]
    host = "shares namespaces with the host: net, ipc, uts, cgroup"
    # Devices keep the filter that is in them; QEMU has none but that of key rings.
    assert failures(found) == {
        *UNCONFINED,
        f"fs-system {NO_FILTER}",
        f"fs-shares {NO_FILTER}",
        f"disk {NO_FILTER}",
        "vmm has 1 of the 3 filters of system calls that its policy needs",
        *(f"{role} {host}" for role in ("fs-system", "fs-shares", "disk", "vmm")),
    }
    assert "\nGIVEN UP by --insecure-no-jail=seccomp\nGIVEN UP by --insecure-no-jail=namespaces\n" in words


@pytest.fixture
def runtime(caller: Runner) -> Iterator[dict[str, str]]:
    """Provide an environment in which no domain runs."""
    path = tempfile.mkdtemp(dir="/var/tmp")
    os.chown(path, caller.user.entry.pw_uid, caller.user.entry.pw_gid)
    yield {"XDG_RUNTIME_DIR": path}
    shutil.rmtree(path)


def test_which_domain(caller: Runner, folder: Path, runtime: dict[str, str]) -> None:
    """Without a name the only domain is taken; of several, and of none, it says so and names them."""
    nothing = caller("audit", env=runtime)
    check_error(nothing, 125, "no domain of yours is running", "cloche run")
    with running(caller, folder, env=runtime) as first:
        assert f"domain {first}," in caller("audit", env=runtime).stdout.decode()
        assert f"domain {first}," in caller("audit", first[:4], env=runtime).stdout.decode()
        check_error(caller("audit", "nix", env=runtime), 125, "no running domain nix", first)
        with running(caller, folder, env=runtime) as second:
            several = caller("audit", env=runtime)
            check_error(several, 125, "2 domains are running", first, second)
            assert f"domain {second}," in caller("audit", second, env=runtime).stdout.decode()
    check_error(caller("audit", first, env=runtime), 125, f"no running domain {first}", "None is running")


def test_a_number_given_to_another_process(caller: Runner, folder: Path, runtime: dict[str, str]) -> None:
    """A domain whose warden's number is another process's now is not mistaken for that process."""
    with running(caller, folder, env=runtime) as name:
        record = Path(runtime["XDG_RUNTIME_DIR"], "cloche", name, "warden")
        pid, start = os.readlink(record).split()
        record.unlink()
        record.symlink_to(f"{pid} {int(start) - 1}")
        check_error(caller("audit", env=runtime), 125, f"the domain {name} has ended")
        record.unlink()
        record.symlink_to(f"{pid} {start}")
        assert caller("audit", env=runtime).returncode == 0


def test_domains_of_others_are_not_found(
    caller: Runner, cloche: Runner, cloche_as_caller: Runner, folder: Path, runtime: dict[str, str]
) -> None:
    """A domain is its owner's to look at, even for somebody whose variable points to the owner's directory."""
    others = [
        other for other in (cloche, cloche_as_caller) if other.user.entry.pw_uid != caller.user.entry.pw_uid
    ]
    with running(caller, folder, env=runtime) as name:
        assert caller("audit", name, env=runtime).returncode == 0
        for other in others:
            check_error(other("audit", name, env=runtime), 125, f"no running domain {name}")


#: Ways of hiding processes from those who may not look into them (proc(5)); only root can mount a /proc to try them.
HIDDEN = ("noaccess", "invisible", "ptraceable") if os.geteuid() == 0 else ()


def test_what_is_hidden_is_not_all_well(caller: Runner, folder: Path) -> None:
    """Where the kernel hides PID 1, and so what is below it, an ordinary user is told so and not that all is well."""
    entry = caller.user.entry
    become = ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
    mount = 'mount -t proc -o "hidepid=$0" proc /proc && exec "$@"'
    with running(caller, folder) as name:
        for how in ("off", *HIDDEN) if HIDDEN else ():
            done = subprocess.run(
                ["unshare", "-m", "sh", "-c", mount, how, *become, caller.program, "audit", name],
                env=caller.user.environment(),
                capture_output=True,
                check=False,
            )
            if how == "off" or entry.pw_uid == 0:
                assert done.returncode == 0, done.stderr
            else:
                check_error(done, 125, f"the domain {name} shows", "hidepid")
