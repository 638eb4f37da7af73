"""A guest with a network behind a passt of its own: names, files, whatever dies, and what holds passt."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.domains import domain_processes
from support.errors import check_error
from support.outside import ADDRESS, ADDRESS6, ECHO_PORT, Outside, outside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.runs import Runner

SIZE = 3_000_000
#: What a guest finds set up, and a file of the network's by a name.
FETCH = f"""
import hashlib, socket, urllib.request
assert {{one[4][0] for one in socket.getaddrinfo("files.test", 80)}} == {{"{ADDRESS}"}}
print(hashlib.sha256(urllib.request.urlopen("http://files.test/file").read()).hexdigest())
"""
#: What is reached by IPv6, once the guest's kernel has heard of a router.
FETCH6 = f"""
import socket, time
while "00" not in {{line.split()[3] for line in open("/proc/net/if_inet6") if line.split()[5] == "eth0"}}:
    time.sleep(0.05)
with socket.create_connection(("{ADDRESS6}", {ECHO_PORT}), 60) as one:
    one.sendall(b"x" * 30_000)
    got = b""
    while len(got) < 30_000:
        got += one.recv(1 << 16)
print(got == b"x" * 30_000, one.family.name)
print(open("/etc/resolv.conf").read(), end="")
"""
#: Connects again and again, and says each time whether it was answered.
AGAIN = f"""
import socket
while True:
    try:
        with socket.create_connection(("{ADDRESS}", {ECHO_PORT}), 5) as one:
            one.sendall(b"x")
            print("whole" if one.recv(1) == b"x" else "cut", flush=True)
    except OSError:
        print("lost", flush=True)
"""


@pytest.fixture(params=["ordinary", "root"])
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    """Provide a host's network with cloche of an ordinary user and of whoever runs the tests, one after the other."""
    name = "cloche" if request.param == "ordinary" else "cloche_as_caller"
    runner: Runner = request.getfixturevalue(name)
    directory = tmp_path_factory.mktemp("web")
    (directory / "file").write_bytes(os.urandom(SIZE))
    with outside(runner, directory) as made:
        yield made


def find_process(supervisor: int, program: str) -> int | None:
    """Return a domain's process, by the first word of its arguments."""
    for pid in domain_processes(supervisor):
        try:
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended meanwhile
        if argv[0] == program.encode():
            return pid
    return None


def read_until(process: subprocess.Popen[bytes], line: bytes) -> None:
    """Read what a program says up to a line."""
    assert process.stdout is not None
    for said in process.stdout:
        if said == line:
            return
    assert process.stderr is not None
    raise AssertionError(process.stderr.read())


def test_a_guest_resolves_a_name_and_fetches_a_file(network: Outside) -> None:
    """Nothing has to be set up: the guest asks the host's resolver, on its loopback device, and gets a file whole."""
    done = network("--net", "user", "--", "python3", "-c", FETCH)
    assert done.returncode == 0, done.stderr
    expected = hashlib.sha256((network.directory / "file").read_bytes()).hexdigest()
    assert done.stdout.decode() == f"{expected}\n"


def test_a_guest_has_ipv6_where_the_host_has_it(network: Outside) -> None:
    """Its kernel finds a router, gets an address that tells nothing of the host's, and reaches what is outside."""
    done = network("--net", "user", "--", "python3", "-c", FETCH6)
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"True AF_INET6\nnameserver 10.0.2.3\n"
    shown = network("--net", "user", "--", "cat", "/proc/net/if_inet6").stdout.decode()
    prefixes = {line.split()[0][:16] for line in shown.splitlines() if line.split()[5] == "eth0"}
    assert prefixes <= {"fd636c6f63680065", "fe80000000000000"}


def test_whatever_dies_the_guest_has_a_network_again(network: Outside) -> None:
    """Passt or the front is killed: both are started anew, said so, and new connections go through."""
    with network.running("--net", "user", "--", "python3", "-c", AGAIN) as process:
        assert process.stderr is not None
        read_until(process, b"whole\n")
        killed: set[int | None] = {None}
        for program, name in (("passt", "passt"), ("cloche-net", "net"), ("passt", "passt")):
            while (victim := find_process(process.pid, program)) in killed:
                read_until(process, b"whole\n")
            assert victim is not None
            killed.add(victim)
            os.kill(victim, signal.SIGKILL)
            said = process.stderr.readline().decode()
            assert said == f"cloche: {name} was killed by signal 9 and is started again\n"
        while find_process(process.pid, "passt") in killed:
            read_until(process, b"whole\n")
        for _ in range(3):
            read_until(process, b"whole\n")


def test_the_audit_knows_passt(network: Outside) -> None:
    """It is held as its policy says: in no namespace of the host's but the network's, and with nothing of its files."""
    with network.running("--net", "user", "--", "sh", "-c", "echo up; exec sleep 1000") as process:
        read_until(process, b"up\n")
        done = network("audit", "--json")
        found = json.loads(done.stdout)
        assert found["failures"] == []
        assert done.returncode == 0
        passt = next(one for one in found["processes"] if one["role"] == "passt")
        own = {name for name, space in passt["namespaces"].items() if space["own"]}
        assert own == {"user", "mnt", "pid", "ipc", "uts", "cgroup"}
        assert passt["seccomp"]["own_filters"] == 3
        assert passt["capabilities"]["effective"] == passt["capabilities"]["permitted"] == []
        assert {mount["path"] for mount in passt["mounts"]} == {"/"}
        kinds = {file["target"].partition(":")[0].partition(" ")[0] for file in passt["files"]}
        assert not any(kind.startswith("/") and kind != "/dev/null" for kind in kinds), kinds


def test_a_passt_that_dies_again_and_again_ends_the_domain(network: Outside) -> None:
    """After some deaths within a minute the run ends with 125 and says why."""
    with network.running("--net", "user", "--", "sh", "-c", "echo up; exec sleep 1000") as process:
        read_until(process, b"up\n")
        killed = set()
        while process.poll() is None:
            victim = find_process(process.pid, "passt")
            if victim is not None and victim not in killed:
                killed.add(victim)
                os.kill(victim, signal.SIGKILL)
        assert process.stderr is not None
        errors = process.stderr.read()
    assert process.returncode == 125
    assert b"the domain ended: its process passt was killed by signal 9, the last of 6 times" in errors


def test_a_host_without_a_network(cloche: Runner) -> None:
    """Where the host has no way out itself, the run ends with the reason, after the first try."""
    root = [] if os.geteuid() == 0 else ["--user", "--map-current-user"]
    entry = cloche.user.entry
    become = ["setpriv", "--reuid", str(entry.pw_uid), "--regid", str(entry.pw_gid), "--clear-groups"]
    done = subprocess.run(
        [
            "unshare",
            "--net",
            *root,
            *(become if os.geteuid() == 0 else ()),
            cloche.program,
            "--net",
            "user",
            "true",
        ],
        env=cloche.user.environment(),
        cwd="/",
        capture_output=True,
        check=False,
    )
    check_error(
        done,
        125,
        "the guest cannot be connected with the host's network: passt exited with status 1",
        "ip route",
    )


def test_a_network_is_added_while_a_program_runs(network: Outside, folder: Path) -> None:
    """The program reaches what is outside without being started anew; disks and forks come after it, the card stays."""
    image = folder / "image"
    with open(image, "wb") as made:
        made.truncate(1 << 20)
    os.chmod(image, 0o666)
    with network.running("--name", "added", "--", "python3", "-c", AGAIN) as process:
        read_until(process, b"lost\n")
        check_error(network("net", "add", "added", "none"), 125, "none is no network to be added")
        check_error(network("net", "add", "added"), 125, "`cloche net add` needs a domain and a network")
        done = network("net", "add", "added", "user")
        assert (done.returncode, done.stdout) == (0, b"eth0\n"), done.stderr
        read_until(process, b"whole\n")
        check_error(network("net", "add", "added", "user"), 125, "the domain has a network card")
        # A disk that comes later has a place behind the card, which keeps its own.
        done = network("disk", "add", "added", f"late={image}")
        assert (done.returncode, done.stdout) == (0, b"/dev/disk/by-tag/late\n"), done.stderr
        fetched = network("exec", "added", "python3", "-c", FETCH)
        expected = hashlib.sha256((network.directory / "file").read_bytes()).hexdigest()
        assert fetched.stdout.decode() == f"{expected}\n", fetched.stderr
        for _ in range(3):
            read_until(process, b"whole\n")
        audit = json.loads(network("audit", "--json", "added").stdout)
        assert audit["failures"] == []
        try:
            assert network("fork", "added", "--name", "fork").stdout == b"fork\n"
            fetched = network("exec", "fork", "python3", "-c", FETCH)
            assert fetched.stdout.decode() == f"{expected}\n", fetched.stderr
        finally:
            network("stop", "-t", "0", "fork")
            network("rm", "fork")
