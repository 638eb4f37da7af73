"""The policies of system calls: what is allowed is needed, and what is not allowed kills."""

from __future__ import annotations

import os
import pwd
import re
import signal
import struct
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cloche.host.bpf import count_allowed
from cloche.host.tools import read_filter, require_own_binary
from support import vhost
from support.outside import outside
from support.runs import Runner
from support.users import OrdinaryUser
from support.vhost import Frontend, device

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The device programs, and the tests that are their whole workload.
WORKLOADS = {
    "cloche-disk": ("tests/component/test_disk_device.py",),
    "cloche-net": ("tests/component/test_net_device.py",),
    "cloche-rng": ("tests/component/test_rng_device.py",),
    "cloche-vsock": ("tests/component/test_vsock_device.py",),
    "cloche-fs": ("tests/component/test_fs_operations.py", "tests/component/test_fs_server.py"),
}
#: And the one that is all of them in one, whose policy is made of theirs.
PROGRAMS = (*WORKLOADS, "cloche-bundle")
#: What a file server calls only where root shares (owners are the host's then), which only root can try.
ONLY_FOR_ROOT = {"setresuid", "setresgid", "capget", "capset", "fchownat", "gettid"}
_CALL = re.compile(r"\d+ +(?:<\.\.\. )?(\w+)(?:\(| resumed)")


#: Every number that a system call of x86-64 may have counts as one.
NUMBERS = 1024


def entries(project: Path, program: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the entries of a policy: the list each is in, and its fields."""
    policy = tomllib.loads((project / "policies" / f"{program}.toml").read_text())
    for phase in ("always", "start"):
        for entry in policy.get(phase, ()):
            yield phase, entry


def traced_calls(project: Path, directory: Path, program: str) -> dict[str, set[str]]:
    """Run a program's workload; return the calls it made before (``start``) and after its filter (``always``)."""
    environment = {**os.environ, vhost.TRACE_VARIABLE: str(directory)}
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *WORKLOADS[program]]
    done = subprocess.run(argv, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    found: dict[str, set[str]] = defaultdict(set)
    for path in directory.glob(f"{program}.*"):
        phase = "start"
        for line in path.read_text(errors="replace").splitlines():
            if match := _CALL.match(line):
                found[phase].add(match[1])
                if match[1] == "seccomp":
                    phase = "always"
    return found


@pytest.mark.parametrize("program", WORKLOADS)
def test_every_call_that_is_allowed_is_needed(project: Path, tmp_path: Path, program: str) -> None:
    """The whole workload makes every call of the policy but those that say why not, each in its time, and no other."""
    found = traced_calls(project, tmp_path, program)
    allowed: dict[str, set[str]] = {"always": set(), "start": set()}
    unseen = set()
    for phase, entry in entries(project, program):
        allowed[phase].update(entry["calls"])
        if "unseen" in entry:
            unseen.update(entry["calls"])
    made = found["start"] | found["always"]
    # The test's own start of the program is not the warden's.
    assert made - {"execve"} <= allowed["start"] | allowed["always"]
    assert found["always"] <= allowed["always"]
    dead = (allowed["always"] - found["always"]) | (allowed["start"] - found["start"])
    if os.geteuid() != 0:
        dead -= ONLY_FOR_ROOT
    assert dead - unseen == set()
    # An excuse that is not needed any more goes.
    assert unseen <= dead


#: What QEMU tries and does without: a call whose flags cannot be looked at, and one with a history of holes.
REFUSED = {"clone3", "io_uring_setup"}


#: What a guest does with the devices of a QEMU that has them all: every kind of change, attributes, and syncs.
CHANGES = """
import os
os.chdir("/mnt/share")
with open("file", "w") as file: file.write("x"); os.fsync(file); os.fdatasync(file)
os.chmod("file", 0o600); os.chown("file", 1, 2); os.utime("file", (1, 1)); os.truncate("file", 0)
os.setxattr("file", "user.a", b"b")
os.getxattr("file", "user.a"); os.listxattr("file"); os.removexattr("file", "user.a")
os.mkdir("empty"); os.mkdir("directory"); os.symlink("file", "symlink"); os.readlink("symlink"); os.link("file", "link")
os.mkfifo("fifo"); os.rename("file", "directory/file"); os.remove("link"); os.listdir("."); os.rmdir("empty")
disk = os.open("/dev/disk/by-tag/home", os.O_RDWR); os.pwrite(disk, bytes(4096), 0); os.fsync(disk)
open("/dev/hwrng", "rb", 0).read(64)
"""


STRACE = ("strace", "-f", "-qq", "--pidns-translation", "-o")


def calls_of(program: str, project: Path, trace: Path, words: list[str]) -> set[str]:
    """Return the calls that a process of a whole machine makes, from its exec on."""
    argv = [str(project / "bin" / "cloche"), "run", *words]
    subprocess.run([*STRACE, str(trace), *argv], check=True)
    return calls_in(trace, program)


def calls_in(trace: Path, program: str) -> set[str]:
    """Return what a program calls by a trace of more than it."""
    threads: set[str] = set()
    made: set[str] = set()
    for line in trace.read_text(errors="replace").splitlines():
        thread, _, text = line.partition(" ")
        if re.match(rf' *exec\w+\(.*"[^"]*{program}', text):
            threads.add(thread)
        if thread in threads and (match := _CALL.match(line)):
            made.add(match[1])
            # A new thread: its number is what the call returns, in its own namespace and then in this one.
            if match[1] in {"clone", "clone3"} and (found := re.search(r"= \d+ /\* (\d+) in ", line)):
                threads.add(found[1])
    return made


def check_calls(project: Path, policies: tuple[str, ...], made: set[str]) -> None:
    """Hold the calls of QEMU against its policy: the last, with those it extends."""
    allowed = {call for name in policies for _, entry in entries(project, name) for call in entry["calls"]}
    assert made - allowed <= REFUSED
    own = [entry for _, entry in entries(project, policies[-1]) if "unseen" not in entry]
    assert {call for entry in own for call in entry["calls"]} - made == set()


def test_qemu_is_refused_nothing_it_needs(project: Path, tmp_path: Path) -> None:
    """A whole machine, with a share and two processors, misses two calls of those QEMU makes and no other."""
    made = calls_of(
        "qemu-system", project, tmp_path / "trace", ["--share", f"{tmp_path}:rw", "--cpus", "2", "--", "true"]
    )
    check_calls(project, ("qemu",), made)


def test_passt_is_refused_nothing_it_needs(project: Path, tmp_path: Path) -> None:
    """Passt makes no other calls than its policy allows but the one for a faster build, and all that it names."""
    entry = pwd.getpwuid(os.getuid())
    caller = Runner(OrdinaryUser(entry, Path(os.environ.get("HOME") or entry.pw_dir), project))
    fetch = "import urllib.request; urllib.request.urlopen('http://files.test/resolv.conf').read()"
    trace = tmp_path / "trace"
    with outside(caller, tmp_path) as network:
        program = (*STRACE, str(trace), caller.program)
        with network.running("--net", "user", "--", "python3", "-c", fetch, program=program) as process:
            _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    made = calls_in(trace, "passt")
    # Refused, it complains, and goes on.
    looks_for_faster, complains = "execve", "dup"
    assert looks_for_faster in made
    check_calls(project, ("passt",), made - {looks_for_faster, complains})


def test_qemu_with_all_devices_is_refused_nothing_it_needs(project: Path, tmp_path: Path) -> None:
    """A QEMU that does the work of all devices misses the same two calls, and makes every one it was given for them."""
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    (tmp_path / "share").mkdir()
    words = ["--devices=vmm", "--hwrng", "--privileged", f"--disk=home={image}"]
    words += [f"--share={tmp_path}/share:rw:at=/mnt/share", "--", "python3", "-c", CHANGES]
    check_calls(
        project, ("qemu", "qemu-devices"), calls_of("qemu-system", project, tmp_path / "trace", words)
    )


def test_a_bundle_makes_the_calls_it_has_beside_those_of_its_devices(project: Path, tmp_path: Path) -> None:
    """What all devices in one process need more than each alone is made, and nothing else than what they may make."""
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    words = ["--devices=bundled", "--hwrng", f"--disk=home={image}", f"--share={tmp_path}:rw:at=/mnt/share"]
    words += ["--privileged", "--", "python3", "-c", CHANGES]
    made = calls_of("cloche-bundle", project, tmp_path / "trace", words)
    check_calls(project, ("cloche-fs", "cloche-disk", "cloche-rng", "cloche-bundle"), made)


def filters_of(pid: int) -> int:
    """Return how many filters a process has."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    assert fields["Seccomp"].strip() in {"0", "2"}
    return int(fields["Seccomp_filters"])


def test_a_device_puts_its_filter_on_before_it_listens() -> None:
    """When its frontend is answered for the first time, the process has one more filter than it was started with."""
    with device("cloche-rng") as running:
        frontend = Frontend(running.connection, 1)
        frontend.query(vhost.GET_FEATURES)
        assert filters_of(running.process.pid) == filters_of(os.getpid()) + 1
        frontend.close()


def run_program(words: list[str], program: bytes) -> int:
    """Run a command under a filter; return its status."""
    script = (
        "import ctypes, os, sys\n"
        "class Program(ctypes.Structure):\n"
        "    _fields_ = [('length', ctypes.c_ushort), ('filter', ctypes.c_char_p)]\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "code = bytes.fromhex(sys.argv[1])\n"
        "assert libc.prctl(38, 1, 0, 0, 0) == 0\n"
        "assert libc.prctl(22, 2, ctypes.byref(Program(len(code) // 8, code)), 0, 0) == 0\n"
        "os.write(1, b'on')\n"
        "call = [int(word) for word in sys.argv[2:]]\n"
        "libc.syscall(*call)\n"
        "os._exit(0)\n"
    )
    argv = ["/usr/bin/python3", "-I", "-S", "-c", script, program.hex(), *words]
    done = subprocess.run(argv, capture_output=True, check=False)
    assert done.stdout == b"on", done.stderr
    return done.returncode


#: Numbers of calls on x86-64 that no device needs.
NEVER = {
    "fork": 57,
    "ptrace": 101,
    "mount": 165,
    "keyctl": 250,
    "unshare": 272,
    "perf_event_open": 298,
    "bpf": 321,
    "userfaultfd": 323,
    "io_uring_setup": 425,
    "clone3": 435,
    "socket": 41,
    "kill": 62,
    "open_by_handle_at": 304,
    # The same call as read, in the numbering of another architecture.
    "x32 read": 0x4000_0000,
}


@pytest.mark.parametrize("call", NEVER.values(), ids=NEVER)
@pytest.mark.parametrize("program", PROGRAMS)
def test_other_calls_kill(program: str, call: int) -> None:
    """What no policy allows kills at once already under the outer filter, and with a filter that allows it does not."""
    # A bundle makes its threads before the inner filter is on, with a call whose flags no filter sees.
    outer = f"{program}.inner" if (program, call) == ("cloche-bundle", NEVER["clone3"]) else program
    assert run_program([str(call), "0", "0", "0", "0", "0"], read_filter(outer)) == -signal.SIGSYS
    allow = struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000)
    # fork gives a second process that ends like the first.
    assert run_program([str(call), "0", "0", "0", "0", "0"], allow) == 0


@pytest.mark.parametrize("program", PROGRAMS)
def test_memory_with_code_in_it_kills(program: str) -> None:
    """No memory becomes executable: not when it is mapped, and not later."""
    anonymous = ["-1", "0"]
    assert run_program(["9", "0", "4096", "7", "34", *anonymous], read_filter(program)) == -signal.SIGSYS
    assert run_program(["9", "0", "4096", "3", "34", *anonymous], read_filter(program)) == 0
    assert run_program(["10", "0", "4096", "5"], read_filter(program)) == -signal.SIGSYS


def test_a_disk_takes_no_room_past_the_end_of_its_file() -> None:
    """The disk may give room up and write zeros; to take room where the file's size does not show it kills."""
    for mode, status in {3: 0, 16: 0, 0: -signal.SIGSYS, 1: -signal.SIGSYS, 17: -signal.SIGSYS}.items():
        assert run_program(["285", "-1", str(mode), "0", "4096"], read_filter("cloche-disk")) == status, mode


def test_a_device_without_its_filter_would_be_seen(project: Path) -> None:
    """The programs are built with a filter in them: its bytes differ from those of the outer one, which allows more."""
    for program in PROGRAMS:
        outer = read_filter(program)
        assert len(outer) % 8 == 0
        with open(require_own_binary(program), "rb") as file:
            content = file.read()
        # The filter's own beginning: load the architecture, compare it, kill.
        assert content.count(outer[:24]) == 1
        assert outer not in content
        assert (project / "policies" / f"{program}.toml").exists()


def test_calls_are_counted_as_the_policies_name_them(project: Path) -> None:
    """What an audit reads out of the compiled filters is the number of calls that the policies name."""
    for path in (project / "policies").glob("*.toml"):
        policies = [tomllib.loads(path.read_text())]
        if "never" in policies[0]:
            # Only those calls count as not allowed that are not whatever their arguments are.
            never = {call for entry in policies[0]["never"] if "args" not in entry for call in entry["calls"]}
            assert count_allowed(read_filter(path.stem)) == NUMBERS - len(never)
            continue
        bases = policies[0].get("extends", [])
        for base in [bases] if isinstance(bases, str) else bases:
            policies.append(tomllib.loads(path.with_name(f"{base}.toml").read_text()))
        always, start = (
            {call for policy in policies for entry in policy.get(phase, ()) for call in entry["calls"]}
            for phase in ("always", "start")
        )
        assert count_allowed(read_filter(path.stem)) == len(always | start)
        assert count_allowed(read_filter(f"{path.stem}.inner")) == len(always)
