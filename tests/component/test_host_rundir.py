"""Run directories: made, locked, and removed by the next command when their owner was killed."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cloche import log
from cloche.errors import HostError
from cloche.host import rundir
from cloche.host.pids import start_time
from cloche.host.rundir import RunDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.users import OrdinaryUser

SOURCE = Path(__file__).resolve().parents[2] / "src"
#: Makes a run directory with a file in it, says where, and waits to be killed.
OWNER = (
    "import sys; sys.path.insert(0, sys.argv[1])\n"
    "from cloche.host.rundir import RunDirectory\n"
    "directory = RunDirectory.create()\n"
    "open(directory.file('control.sock'), 'w').close()\n"
    "print(directory.path, flush=True)\n"
    "sys.stdin.read()\n"
)
SWEEPER = (
    "import sys; sys.path.insert(0, sys.argv[1])\n"
    "from cloche.host import rundir\n"
    "print('ready', flush=True)\n"
    "sys.stdin.readline()\n"
    "print(rundir.sweep(), flush=True)\n"
)


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Provide the directory of run directories, in a runtime directory of the test's own."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "cloche"


@pytest.fixture
def debug() -> Iterator[list[str]]:
    """Provide what is said with -v."""
    lines: list[str] = []
    log.set_sink("debug", lines.append)
    yield lines
    log.set_sink("debug", None)


def start(program: str) -> subprocess.Popen[str]:
    """Start a Python program that uses the sources."""
    return subprocess.Popen(
        ["/usr/bin/python3", "-IS", "-c", program, str(SOURCE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def start_owner() -> tuple[subprocess.Popen[str], Path]:
    """Start a process that owns a run directory; returns both."""
    process = start(OWNER)
    assert process.stdout
    return process, Path(process.stdout.readline().strip())


def kill(process: subprocess.Popen[str]) -> None:
    """End a process without giving it a chance to clean up."""
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def age(path: Path) -> None:
    """Make a directory look as if it had been made long ago."""
    os.utime(path, (0, 0))


def test_a_run_directory_is_private_and_goes(parent: Path) -> None:
    """It is made for its owner alone, holds its lock, and is removed with what is in it."""
    directory = RunDirectory.create()
    path = Path(directory.path)
    assert path == parent / directory.ident
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(parent.stat().st_mode) == 0o700
    assert [entry.name for entry in path.iterdir()] == ["lock"]
    Path(directory.file("control.sock")).write_text("")
    directory.close()
    directory.close()
    assert list(parent.iterdir()) == []


def test_every_run_has_its_own(parent: Path) -> None:
    """Names are never the same."""
    made = [RunDirectory.create() for _ in range(20)]
    assert len({directory.ident for directory in made}) == 20
    for directory in made:
        directory.close()


def test_the_living_are_left_alone(parent: Path) -> None:
    """A sweep does not touch the directory of a process that lives, however old it is, another's or one's own."""
    process, path = start_owner()
    own = RunDirectory.create()
    age(path)
    age(Path(own.path))
    assert rundir.sweep() == 0
    assert {entry.name for entry in parent.iterdir()} == {path.name, own.ident}
    kill(process)
    own.close()


def test_the_killed_ones_directory_is_swept(parent: Path) -> None:
    """The directory of a process that was killed is removed by the next sweep, and only then counted."""
    process, path = start_owner()
    kill(process)
    assert (path / "control.sock").exists()
    assert rundir.sweep() == 1
    assert list(parent.iterdir()) == []
    assert rundir.sweep() == 0


def test_the_lock_is_not_inherited(parent: Path) -> None:
    """A program that the owner started does not keep the directory alive."""
    program = OWNER.replace(
        "sys.stdin.read()",
        "import os, subprocess; child = subprocess.Popen(['/usr/bin/sleep', '1000'], stdin=0)\n"
        "print(child.pid, flush=True); sys.stdin.read()",
    )
    process = start(program)
    assert process.stdout
    path, child = Path(process.stdout.readline().strip()), int(process.stdout.readline())
    process.kill()
    process.wait()
    try:
        assert rundir.sweep() == 1
        assert not path.exists()
    finally:
        os.kill(child, signal.SIGKILL)
        process.communicate()


def test_two_sweeps_at_once(parent: Path) -> None:
    """Sweeps that run at the same time remove everything together, and neither fails."""
    owners = [start_owner()[0] for _ in range(5)]
    for owner in owners:
        kill(owner)
    # Made by hand they are as good as those of killed processes, and there can be many.
    for number in range(200):
        (parent / f"dead{number}").mkdir()
        (parent / f"dead{number}/lock").write_text("")
        (parent / f"dead{number}/a.sock").write_text("")
    sweepers = [start(SWEEPER) for _ in range(3)]
    for sweeper in sweepers:
        assert sweeper.stdout
        assert sweeper.stdout.readline() == "ready\n"
    for sweeper in sweepers:
        assert sweeper.stdin
        sweeper.stdin.write("\n")
        sweeper.stdin.flush()
    counts = [int(sweeper.communicate()[0]) for sweeper in sweepers]
    assert [sweeper.returncode for sweeper in sweepers] == [0, 0, 0]
    assert sum(counts) >= 205
    assert list(parent.iterdir()) == []


def test_sweeps_while_directories_are_made(parent: Path) -> None:
    """A sweep never takes a directory from somebody who is just making it."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from cloche.host.rundir import RunDirectory\n"
        "for _ in range(200):\n"
        "    directory = RunDirectory.create()\n"
        "    open(directory.file('x'), 'x').close()\n"
        "    directory.close()\n"
    )
    makers = [start(program) for _ in range(2)]
    while any(maker.poll() is None for maker in makers):
        assert rundir.sweep() == 0
    for maker in makers:
        maker.communicate()
        assert maker.returncode == 0
    assert list(parent.iterdir()) == []


def test_what_is_being_made_has_time(parent: Path) -> None:
    """A directory that has no lock yet, or its first name still, is left alone unless it is old."""
    parent.mkdir(mode=0o700)
    for name in ("new-1", "new-2", "3"):
        (parent / name).mkdir()
    (parent / "new-2/lock").write_text("")
    assert rundir.sweep() == 0
    for name in ("new-1", "new-2", "3"):
        age(parent / name)
    assert rundir.sweep() == 3
    assert list(parent.iterdir()) == []


def test_other_things_are_left_alone(parent: Path, tmp_path: Path) -> None:
    """A file, and a link to somebody's directory, are no run directories."""
    parent.mkdir(mode=0o700)
    (parent / "file").write_text("x")
    age(parent / "file")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    (elsewhere / "lock").write_text("x")
    (parent / "link").symlink_to(elsewhere)
    os.utime(parent / "link", (0, 0), follow_symlinks=False)
    assert rundir.sweep() == 0
    assert (elsewhere / "precious").exists()
    assert (parent / "file").exists()


def test_a_directory_that_cannot_be_removed_is_no_error(parent: Path, debug: list[str]) -> None:
    """What does not belong in a run directory stays, and is told with -v."""
    (parent / "dead/inner").mkdir(parents=True)
    parent.chmod(0o700)
    (parent / "dead/lock").write_text("")
    rundir.sweep()
    assert (parent / "dead/inner").is_dir()
    assert any("cannot remove" in line and "dead" in line for line in debug)


def test_without_descriptors_nobody_is_taken_for_dead(parent: Path) -> None:
    """A sweep that may open no more files removes nothing, even what looks old."""
    directory = RunDirectory.create()
    age(Path(directory.path))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    scan = os.open(parent, os.O_RDONLY)  # the next free number is what listing the directory takes
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (scan + 1, hard))
        assert rundir.sweep() == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(scan)
    assert Path(directory.path).is_dir()
    directory.close()


def test_there_is_nothing_to_sweep(parent: Path) -> None:
    """Without any run directory a sweep finds nothing and makes nothing."""
    assert rundir.sweep() == 0
    assert not parent.exists()


def test_a_directory_open_to_others_is_not_swept(parent: Path) -> None:
    """Where somebody else can write, nothing is removed on their word."""
    process, path = start_owner()
    kill(process)
    parent.chmod(0o777)
    assert rundir.sweep() == 0
    assert path.exists()
    parent.chmod(0o700)
    assert rundir.sweep() == 1


def test_a_runtime_directory_that_is_a_file(parent: Path) -> None:
    """When the place is taken by a file, making a run directory says so."""
    parent.write_text("")
    with pytest.raises(HostError, match=str(parent)):
        RunDirectory.create()


def test_unwritable_directories(ordinary: OrdinaryUser, tmp_path: Path) -> None:
    """Without the right to write there, the path, the reason and a hint are told, and nothing is left behind."""
    program = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from cloche.errors import HostError\n"
        "from cloche.host.rundir import RunDirectory\n"
        "home = os.environ['HOME']; os.makedirs(home + '/run/cloche'); os.chmod(home + '/run/cloche', 0o500)\n"
        "os.environ['XDG_RUNTIME_DIR'] = home + '/run'; os.chmod(home + '/run', 0o700)\n"
        "try: RunDirectory.create()\n"
        "except HostError as error: print(error.message, '|', error.hint)\n"
        "print(os.listdir('/proc/self/fd').__len__())\n"
        "os.rmdir(home + '/run/cloche'); os.rmdir(home + '/run')\n"
    )
    argv = ["/usr/bin/python3", "-IS", "-c", program, str(ordinary.project / "src")]
    told, descriptors = ordinary.run(argv, check=True).stdout.decode().splitlines()
    assert told.startswith(f"cannot make the run directory {ordinary.home}/run/cloche/")
    assert ": Permission denied | Free some space there, or set XDG_RUNTIME_DIR" in told
    assert int(descriptors) == 4


def test_a_full_disk_leaves_nothing_half_made(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the lock cannot be made, the error says why, and neither directory nor descriptor stays."""
    parent.mkdir(mode=0o700)
    before = len(os.listdir("/proc/self/fd"))

    def refuse(source: str, target: str) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(HostError, match="No space left on device"):
        RunDirectory.create()
    assert list(parent.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before


# Running domains

RECORDER = OWNER.replace("print(", "import os; directory.record_warden(os.getpid())\nprint(")


def test_a_domain_is_found_by_its_warden(parent: Path) -> None:
    """What the supervisor has written down is found as long as it lives, by name."""
    directories = [RunDirectory.create() for _ in range(2)]
    assert rundir.find_running() == ()
    directories[0].record_warden(os.getpid())
    directories[1].record_warden(os.getpid(), ("seccomp", "namespaces"))
    found = {running.ident: running for running in rundir.find_running()}
    assert list(found) == sorted(directory.ident for directory in directories)
    first, second = (found[directory.ident] for directory in directories)
    assert first.warden == second.warden == os.getpid()
    assert first.start == second.start == start_time(os.getpid())
    assert (first.insecure, second.insecure) == ((), ("seccomp", "namespaces"))
    for directory in directories:
        directory.close()
    assert rundir.find_running() == ()
    assert list(parent.iterdir()) == []


def test_an_abandoned_domain_is_not_found(parent: Path) -> None:
    """A domain whose supervisor was killed is none, even before its directory is removed."""
    process, path = start(RECORDER), parent
    assert process.stdout
    path = Path(process.stdout.readline().strip())
    assert [running.ident for running in rundir.find_running()] == [path.name]
    kill(process)
    assert (path / "warden").is_symlink()
    assert rundir.find_running() == ()
    assert rundir.sweep() == 1


@pytest.mark.parametrize("text", ["", "1", "x 1", "1 -1", "1 \N{SUPERSCRIPT TWO}"])
def test_a_damaged_record_is_none(parent: Path, text: str) -> None:
    """What is not two numbers, and what is no link, names no process."""
    directory = RunDirectory.create()
    if text:
        os.symlink(text, directory.file("warden"))
    else:
        Path(directory.file("warden")).write_text("1 1")
    assert rundir.find_running() == ()
    directory.close()


def test_a_warden_that_is_gone_is_not_recorded(parent: Path) -> None:
    """A process that has ended names nothing: what it said of its end is heard elsewhere."""
    directory = RunDirectory.create()
    directory.record_warden(1 << 22)
    assert rundir.find_running() == ()
    directory.close()


def test_domains_where_others_can_write_are_not_believed(parent: Path) -> None:
    """Somebody else who can write there could name any process."""
    directory = RunDirectory.create()
    directory.record_warden(os.getpid())
    assert len(rundir.find_running()) == 1
    parent.chmod(0o777)
    assert rundir.find_running() == ()
    parent.chmod(0o700)
    directory.close()
