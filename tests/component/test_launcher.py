"""Carrying out a plan with real jails: what is started, what is heard, and that nothing stays; in both launchers."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from cloche.domain.launcher import Launcher
from cloche.domain.remote import RemoteLauncher
from cloche.domain.timings import Timings
from cloche.errors import ClocheError, DiskError, DomainError, LaunchError
from cloche.host import rundir
from cloche.host.reactor import Reactor
from cloche.model.jail import File
from cloche.model.plan import Descriptor, Endpoint, EndpointKind, LaunchPlan, OpenFile, ProcessPlan
from support import leaks
from support.plans import facts, request
from support.wardens import PATIENCE_S, descendants, small_jail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    AnyLauncher = Launcher | RemoteLauncher

CONSOLE = Descriptor("console", "there", 3)
CONTROL = Descriptor("control", "listen", 10)
#: Answers one connection with what it said, twice.
ECHO = "import socket; one = socket.socket(fileno=10).accept()[0]; one.sendall(one.recv(9) * 2)"


def script(
    name: str, text: str, *descriptors: Descriptor, essential: bool = True, **jail: Any
) -> ProcessPlan:
    """Return a process of a domain that runs a shell script in a small jail."""
    argv = (b"/bin/sh", b"-c", text.encode())
    return ProcessPlan(
        name, argv, (b"PATH=/usr/bin",), descriptors, small_jail()._replace(**jail), essential=essential
    )


def plan(*processes: ProcessPlan, console: bool = True) -> LaunchPlan:
    """Return a plan with these processes; nothing of a guest is in it."""
    from cloche.drivers.registry import find_driver

    bare = find_driver("bwrap").plan(request(), facts(), None)
    endpoints = (Endpoint("control", EndpointKind.LISTEN), Endpoint("console", EndpointKind.PAIR))
    return bare._replace(
        endpoints=endpoints, processes=processes, console="console" if console else "", setup=()
    )


class Domain:
    """A launcher with its loop, and what it reported."""

    def __init__(self, kind: type[AnyLauncher], made: LaunchPlan) -> None:
        self.reactor = Reactor()
        self.ends: list[ClocheError] = []
        self.launcher: AnyLauncher = kind(self.reactor, made, Timings())
        self.launcher.ended = self.ends.append

    def until(self, condition: Callable[[], bool]) -> None:
        """Run the loop until something has happened."""
        assert self.reactor.run_until(condition, timeout=PATIENCE_S)

    def until_ended(self) -> ClocheError:
        """Run the loop until the domain has ended by itself; returns why."""
        self.until(lambda: bool(self.ends))
        assert len(self.ends) == 1
        return self.ends[0]

    def says(self, line: str) -> None:
        """Wait until the console ends with a line. Its end is no event of a remote launcher: it is asked again."""
        for _ in range(10_000):
            if self.launcher.console_tail()[-1:] == [line]:
                return
            self.reactor.run_once(0.01)
        raise AssertionError(self.launcher.console_tail())


@pytest.fixture(params=[Launcher, RemoteLauncher])
def start(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Domain]]:
    """Provide a function that makes a domain of processes and starts it; nothing of it is left afterwards."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    before, processes = set(os.listdir("/proc/self/fd")), descendants(os.getpid())
    made: list[Domain] = []

    def start(*processes: ProcessPlan, **options: bool) -> Domain:
        domain = Domain(request.param, plan(*processes, **options))
        made.append(domain)
        domain.launcher.start()
        return domain

    yield start
    for domain in made:
        domain.launcher.close()
        domain.launcher.close()
        domain.reactor.close()
    assert set(os.listdir("/proc/self/fd")) == before
    assert list(tmp_path.glob("cloche/*")) == []
    assert descendants(os.getpid()) == processes


def test_a_domain_answers(start: Callable[..., Domain]) -> None:
    """The control socket can be connected to at once, and the process answers when it comes up."""
    domain = start(script("echo", f"exec python3 -IS -c '{ECHO}'", CONTROL), console=False)
    with closing(domain.launcher.connect()) as connection:
        connection.sendall(b"hello")
        connection.settimeout(PATIENCE_S)
        assert connection.recv(10, 256) == b"hellohello"
    assert "exited with status 0" in domain.until_ended().message


def test_the_name_is_the_run_directorys(start: Callable[..., Domain], tmp_path: Path) -> None:
    """While it runs a domain has one run directory, called as the domain is, that no sweep takes."""
    domain = start(script("idle", "read x <&3", CONSOLE))
    assert rundir.sweep() == 0
    assert [path.name for path in tmp_path.glob("cloche/*")] == [domain.launcher.ident]
    domain.launcher.close()
    assert list(tmp_path.glob("cloche/*")) == []
    assert domain.ends == []


def test_the_console_is_kept_and_made_safe(start: Callable[..., Domain]) -> None:
    """The last lines of the console can be asked for, escaped; there are never more than were wanted."""
    text = r"seq -f 'line %g' 0 2999 >&3; printf 'a\033[2Jb\r\n\n' >&3; read x <&3"
    domain = start(script("talker", text, CONSOLE))
    domain.says("a\\x1b[2Jb")
    assert domain.launcher.console_tail(3) == ["line 2998", "line 2999", "a\\x1b[2Jb"]
    assert domain.ends == []


@pytest.mark.parametrize(
    "text, message, hint",
    [
        ("exit 3", "the domain ended: its process vmm exited with status 3", "doctor"),
        ("exit 0", "the guest's kernel has stopped the machine", "--boot-log"),
        ("kill -KILL $$", "the domain ended: its process vmm was killed by signal 9", "dmesg"),
        ("kill -SYS $$", "the domain ended: its process vmm was killed by signal 31", "policy"),
    ],
)
def test_the_end_of_an_essential_process(
    start: Callable[..., Domain], text: str, message: str, hint: str
) -> None:
    """When a process the domain cannot do without ends, the domain ends, once, with name and reason."""
    domain = start(script("helper", "read x <&3", CONSOLE), script("vmm", text))
    error = domain.until_ended()
    assert isinstance(error, DomainError)
    assert error.message == message
    assert error.hint is not None
    assert hint in error.hint


@pytest.mark.parametrize(
    "text, done",
    [
        ("echo 'reboot: Restarting system' >&3", "restarted"),
        (r"printf 'word\r\n[    1.5] reboot: Restarting system\r\n' >&3", "restarted"),
        ("echo 'reboot: Power down' >&3; read x <&3", "switched off"),
        ("echo 'reboot: Power off not available: System halted instead' >&3; read x <&3", "switched off"),
        ("echo 'reboot: System halted' >&3; read x <&3", "halted"),
    ],
)
def test_a_machine_that_its_program_ends(start: Callable[..., Domain], text: str, done: str) -> None:
    """A restart, and a stop after which the machine only stands still, are told as what a program has done."""
    error = start(script("vmm", text, CONSOLE)).until_ended()
    assert error.message == f"a program in the guest has {done} its machine, and ended itself with it"
    assert error.detail == ()


@pytest.mark.parametrize(
    "line", ["reboot: Power d[7]: segfault", "no reboot: System halted", "reboot: System halted."]
)
def test_other_words_end_nothing(start: Callable[..., Domain], line: str) -> None:
    """Only the kernel's whole line counts: not what a program's name, which it may choose, makes the kernel say."""
    domain = start(script("vmm", f"echo '{line}' >&3; read x <&3", CONSOLE))
    domain.says(line)
    assert domain.ends == []


def test_the_last_words_are_told(start: Callable[..., Domain]) -> None:
    """What was on the console when the domain ended is the hint."""
    domain = start(
        script("vmm", "echo dying >&3; read x <&3; exit 1", CONSOLE), script("idle", "read x <&3", CONSOLE)
    )
    domain.says("dying")
    domain.launcher.close()
    assert domain.launcher.console_tail() == ["dying"]


def test_the_end_of_a_helper(start: Callable[..., Domain]) -> None:
    """A process that is not essential may end, and a file server may when its work is done; the domain goes on."""
    domain = start(
        script("helper", "exit 7", essential=False),
        script("fs-system", "exit 0"),
        script("vmm", "echo up >&3; read x <&3", CONSOLE),
    )
    domain.says("up")
    assert domain.ends == []


def test_a_file_server_that_fails(start: Callable[..., Domain]) -> None:
    """A file server that ends with an error takes the domain along and is named."""
    domain = start(script("fs-shares", "exit 1"), script("vmm", "read x <&3", CONSOLE))
    assert "fs-shares exited with status 1" in domain.until_ended().message


def test_a_program_that_is_not_there(start: Callable[..., Domain]) -> None:
    """A process that cannot be started ends the domain with its name, the step and the reason."""
    broken = script("vmm", "")._replace(argv=(b"/nonexistent",))
    error = start(script("helper", "read x <&3", CONSOLE), broken).until_ended()
    assert isinstance(error, LaunchError)
    assert error.message.startswith("cannot start vmm: ")
    assert error.message.endswith("No such file or directory")


def test_a_jail_that_cannot_be_built(start: Callable[..., Domain]) -> None:
    """A source that is missing ends the start and names the path; no process runs with half a jail."""
    from cloche.model.jail import Bind

    jail = small_jail(Bind(b"/nonexistent/kernel", b"/kernel", 1))
    error = start(script("vmm", "read x <&3", CONSOLE, root=jail.root)).until_ended()
    assert isinstance(error, LaunchError)
    assert "/nonexistent/kernel" in error.message or "/kernel" in error.message


def test_a_binary_that_was_not_built(start: Callable[..., Domain]) -> None:
    """A program of cloche's own that is missing on the host is an error of the start, with the remedy."""
    missing = script("vmm", "")._replace(executable="/nonexistent/cloche-fs")
    with pytest.raises(LaunchError, match="cannot open /nonexistent/cloche-fs") as caught:
        start(script("helper", "read x <&3", CONSOLE), missing)
    assert "make setup" in str(caught.value.hint)


def test_every_domain_has_a_machine_id_of_its_own(start: Callable[..., Domain]) -> None:
    """The zeros of the plan are replaced by fresh digits, each time others."""
    jail = small_jail(File(b"/etc/machine-id", 0o444, b"0" * 32 + b"\n"))
    seen = set()
    for _ in range(2):
        domain = start(
            script("vmm", "cat /etc/machine-id >&3; echo end >&3; read x <&3", CONSOLE, root=jail.root)
        )
        domain.says("end")
        machine_id = domain.launcher.console_tail()[-2]
        assert len(machine_id) == 32
        assert int(machine_id, 16) != 0
        seen.add(machine_id)
    assert len(seen) == 2


def test_closing_ends_everything(start: Callable[..., Domain]) -> None:
    """Close returns when every process is gone, also one that ignores every signal it can."""
    domain = start(script("vmm", "trap '' TERM INT HUP; sleep 1000 & echo up >&3; wait", CONSOLE))
    domain.says("up")
    running = descendants(os.getpid())
    # At least both processes of the warden, the shell and its child.
    assert len(running) > 4
    domain.launcher.close()
    assert descendants(os.getpid()) == running[:1]


def child(name: str, parent: int) -> int:
    """Return the one child of a process that has this name."""
    found = [one.pid for one in leaks.processes().values() if one.parent == parent and one.name == name]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("victim", ["warden", "init"])
def test_a_killed_warden(start: Callable[..., Domain], request: pytest.FixtureRequest, victim: str) -> None:
    """When either process of the warden is killed, the domain's end is reported and its processes go."""
    domain = start(script("vmm", "echo up >&3; read x <&3", CONSOLE))
    domain.says("up")
    parent = os.getpid()
    if isinstance(domain.launcher, RemoteLauncher):
        parent = domain.launcher._pid
    warden = child("cloche-warden", parent)
    if victim == "init":
        warden = child("cloche-warden/1", warden)
    os.kill(warden, signal.SIGKILL)
    assert "gone" in domain.until_ended().message


def test_a_killed_supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the supervisor is killed, the host program hears it, and the next command removes the run directory."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    domain = Domain(RemoteLauncher, plan(script("vmm", "echo up >&3; read x <&3", CONSOLE)))
    domain.launcher.start()
    domain.says("up")
    assert isinstance(domain.launcher, RemoteLauncher)
    os.kill(domain.launcher._pid, signal.SIGKILL)
    assert domain.until_ended().message == "the domain's supervisor is gone"
    domain.launcher.close()
    domain.reactor.close()
    assert rundir.sweep() == 1
    assert list(tmp_path.glob("cloche/*")) == []


HOST_PROGRAM = """
import sys
sys.path[:0] = sys.argv[1:3]
from cloche.domain.remote import RemoteLauncher
import importlib.util
spec = importlib.util.spec_from_file_location("launchers", sys.argv[3])
launchers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(launchers)
idle = launchers.script("vmm", "echo up >&3; read x <&3", launchers.CONSOLE)
domain = launchers.Domain(RemoteLauncher, launchers.plan(idle))
domain.launcher.start()
domain.says("up")
print(domain.launcher._pid, flush=True)
sys.stdin.read()
"""


def test_a_killed_host_program(tmp_path: Path, project: Path) -> None:
    """When the program that uses the API is killed, its supervisor ends the domain and cleans up, without a word."""
    argv = [sys.executable, "-c", HOST_PROGRAM, str(project / "src"), str(project / "tests"), __file__]
    with subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    ) as program:
        assert program.stdout
        assert program.stderr
        supervisor = os.pidfd_open(int(program.stdout.readline()))
        program.kill()
        assert select.select([supervisor], [], [], PATIENCE_S)[0]
        os.close(supervisor)
        assert program.stderr.read() == b""
    assert list(tmp_path.glob("cloche/*")) == []


def mortal(text: str, path: Path, *, writable: bool = True) -> ProcessPlan:
    """Return a process that has a file and the console, and is started again when it dies."""
    file = OpenFile(str(path), writable, 4)
    return script("disk-home", text, CONSOLE)._replace(files=(file,), restarts=True)


def test_a_process_that_dies_is_started_again_with_what_it_had(
    start: Callable[..., Domain], tmp_path: Path
) -> None:
    """The next process has the same open file, at the place where the one before left it."""
    path = tmp_path / "file"
    path.write_text("first\nsecond\n")
    # The shell reads one byte at a time and so no more than a line.
    domain = start(
        mortal("read line <&4; echo $line >&3; test $line = second && read x <&3; kill -KILL $$", path)
    )
    domain.says("second")
    assert domain.ends == []


def test_a_process_that_dies_again_and_again_ends_the_domain(
    start: Callable[..., Domain], tmp_path: Path
) -> None:
    """After some deaths within a minute the domain ends, with the name, how it ended, and its last words."""
    path = tmp_path / "file"
    path.touch()
    domain = start(mortal("echo alas >&2; exit 3", path), script("vmm", "read x <&3", CONSOLE))
    error = domain.until_ended()
    assert error.message.startswith(
        "the domain ended: its process disk-home exited with status 3, the last of 6"
    )
    assert error.detail == ("alas",)


def test_a_file_belongs_to_one_domain(start: Callable[..., Domain], tmp_path: Path) -> None:
    """A file that a domain may write is refused to every other, until that domain has ended."""
    path = tmp_path / "file"
    path.touch()
    waiting = "echo up >&3; read x <&3"
    first = start(mortal(waiting, path))
    first.says("up")
    for writable in (True, False):
        with pytest.raises(DiskError, match="another domain has it"):
            start(mortal(waiting, path, writable=writable))
    first.launcher.close()
    readers = [start(mortal(waiting, path, writable=False)) for _ in range(2)]
    for reader in readers:
        reader.says("up")


def test_a_file_that_cannot_be_opened(start: Callable[..., Domain], tmp_path: Path) -> None:
    """A file that is not there any more when the domain starts is named, and nothing is left running."""
    with pytest.raises(DiskError, match="No such file"):
        start(mortal("exit 0", tmp_path / "gone"))
