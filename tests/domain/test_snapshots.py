"""Running domains that are saved, restored and forked: what goes on, what is fresh, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cloche.host import snapshots

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.runs import Runner

#: Counts, in its output, in a file that is open all the time in a share, and on a disk.
COUNTER = """
import os
shared = open("/mnt/count", "a")
disk = os.open("/dev/disk/by-tag/data", os.O_RDWR)
number = 0
while True:
    number += 1
    print(number, flush=True)
    shared.write(f"{number}\\n")
    shared.flush()
    os.pwrite(disk, b"%16d" % number, 0)
    os.fsync(disk)
    os.system("sleep 0.05")
"""
SHOW = "cat /etc/machine-id; cat /run/cloche/generation; head -c 16 /dev/disk/by-tag/data"


@pytest.fixture(scope="module", params=["ordinary", "caller"])
def runner(request: pytest.FixtureRequest) -> Runner:
    """Provide cloche as both run it."""
    runner: Runner = request.getfixturevalue("cloche" if request.param == "ordinary" else "cloche_as_caller")
    return runner


@pytest.fixture(scope="module")
def room(runner: Runner) -> Iterator[Path]:
    """Provide a directory of the user's, with a shared one and an image in it."""
    path = Path(tempfile.mkdtemp(dir=runner.user.home, prefix="snapshots-"))
    (path / "shared").mkdir()
    make_image(runner, path / "image")
    for each in (path, path / "shared"):
        os.chown(each, runner.user.entry.pw_uid, runner.user.entry.pw_gid)
    yield path
    shutil.rmtree(path)


def make_image(runner: Runner, path: Path) -> None:
    """Make an empty image of the user's."""
    with open(path, "wb") as image:
        image.truncate(1 << 20)
    os.chown(path, runner.user.entry.pw_uid, runner.user.entry.pw_gid)


def home(runner: Runner) -> Path:
    """Return where the user's snapshots are."""
    return runner.user.home / ".local" / "share" / "cloche" / "snapshots"


@contextmanager
def domains(runner: Runner, *names: str) -> Iterator[None]:
    """End and forget these domains afterwards, and the snapshots of their names that a failure has left."""
    try:
        yield
    except BaseException:
        for name in names:
            runner("snapshot", "delete", name)
        raise
    finally:
        for name in names:
            runner("stop", "-t", "0", name)
            while runner("rm", name).returncode == 0:
                pass


@pytest.fixture(scope="module")
def saved(runner: Runner, room: Path) -> Iterator[str]:
    """Provide a snapshot of a domain that counts, which has ended meanwhile."""
    name = f"base-{os.getpid()}"
    with domains(runner, name):
        start(runner, name, room)
        wait_for(runner, name, 5)
        done = runner("snapshot", "save", "--stop", name, name)
        assert done.returncode == 0, done.stderr
    yield name
    assert runner("snapshot", "delete", name).returncode == 0


def start(runner: Runner, name: str, room: Path, *options: str) -> None:
    """Start the counter."""
    done = runner(
        *("run", "-d", "--name", name, "--privileged", "--share", f"{room / 'shared'}:rw:at=/mnt"),
        *("--disk", f"data={room / 'image'}", *options, "--", "python3", "-u", "-c", COUNTER),
    )
    assert done.returncode == 0, done.stderr


def wait_for(runner: Runner, name: str, lines: int) -> list[int]:
    """Wait until a domain's program has said so many lines, and return the numbers."""
    with runner.popen("logs", "-f", name) as following:
        assert following.stdout is not None
        found = [following.stdout.readline() for _ in range(lines)]
        following.kill()
    return [int(line) for line in found]


def test_a_domain_goes_on_after_it_was_saved_and_from_there(runner: Runner, room: Path) -> None:
    """Program, open file, disk and mounts go on in both, each number once; the clone's disk is its own."""
    one, two, third = (f"{word}-{os.getpid()}" for word in ("one", "two", "third"))
    with domains(runner, one, two, third):
        start(runner, one, room)
        wait_for(runner, one, 3)
        done = runner("snapshot", "save", one, one)
        assert done.returncode == 0, done.stderr
        try:
            (row,) = [
                row
                for row in json.loads(runner("snapshot", "list", "--check", "--json").stdout)
                if row["name"] == one
            ]
            assert (row["damage"], row["disks"], row["memory_mib"]) == ("", ["data"], 1024)
            assert runner("snapshot", "save", one, one).returncode == 125
            # It goes on by itself, without a number lost or doubled.
            numbers = wait_for(runner, one, 60)
            assert numbers == list(range(1, 61))
            done = runner("snapshot", "restore", one, "--name", two)
            assert (done.returncode, done.stdout.decode()) == (0, f"{two}\n"), done.stderr
        finally:
            # Whoever goes on from it has it open.
            assert runner("snapshot", "delete", one).returncode == 0
        again = wait_for(runner, two, 30)
        assert again == list(range(again[0], again[0] + 30))
        assert 3 < again[0] < 60
        assert runner("stop", "-t", "0", one).returncode == 0
        before = (room / "image").read_bytes()
        seen = [runner("exec", two, "sh", "-c", SHOW).stdout.decode().splitlines()]
        wait_for(runner, two, 60)
        assert int(seen[0][2]) >= again[0]
        assert (room / "image").read_bytes() == before
        audit = json.loads(runner("audit", "--json", two).stdout)
        assert audit["ok"], audit["failures"]
        # The shared file has what all of them wrote.
        assert (room / "shared" / "count").read_text().split().count(str(again[5])) == 2
        # Shares come and go in it, as in a machine that was started.
        assert runner("share", "add", two, f"{room}:at=/srv/room").returncode == 0
        assert_share_goes(runner, two, "/srv/room")
        # A clone can be saved and doubled as well.
        assert runner("fork", two, "--name", third).stdout.decode() == f"{third}\n"
        later = wait_for(runner, third, 5)
        assert later[0] > again[-1]
        seen.append(runner("exec", third, "sh", "-c", SHOW).stdout.decode().splitlines())
        assert all(first != second for first, second in zip(*seen, strict=True)), seen
        # What it had when it was saved can be taken away, too: a file of it is open, and of no use then.
        assert "is in use in the guest" in refused(runner, "share", "remove", third, "/mnt")
        done = runner("share", "remove", "--force", third, "/mnt")
        assert done.returncode == 0, done.stderr
        assert runner("wait", third).returncode == 1
        assert b"Stale file handle" in runner("logs", third).stderr


def assert_share_goes(runner: Runner, name: str, place: str) -> None:
    """A share is there, is taken away by the command, and then it is not."""
    assert runner("exec", name, "test", "-e", f"{place}/image").returncode == 0
    done = runner("share", "remove", name, place)
    assert done.returncode == 0, done.stderr
    assert runner("exec", name, "test", "-e", f"{place}/image").returncode == 1
    assert place.encode() not in runner("share", "list", name).stdout


def test_forks_go_on_apart(runner: Runner) -> None:
    """K forks have what the domain had when it was forked, then each its own; a terminal's program keeps its input."""
    names = [f"{word}-{os.getpid()}" for word in ("parent", "left", "right")]
    parent, left, right = names
    with domains(runner, *names):
        done = runner(
            "run", "-d", "--name", parent, "--interactive", "--", "sh", "-c", "echo up; read x; echo $x"
        )
        assert done.returncode == 0, done.stderr
        with runner.popen("logs", "-f", parent) as following:
            assert following.stdout is not None
            assert following.stdout.readline() == b"up\n"
            following.kill()
        assert runner("exec", parent, "sh", "-c", "echo common > /tmp/file").returncode == 0
        # A name that cannot be given is told before anything is saved or started.
        for words in ((left, left), (left, parent)):
            refused(runner, "fork", parent, "--name", words[0], "--name", words[1])
        assert f" {left} ".encode() not in runner("ps").stdout
        done = runner("fork", parent, "-n", "2", "--name", left, "--name", right)
        assert (done.returncode, done.stdout.decode().split()) == (0, [left, right]), done.stderr
        for name in names:
            written = runner("exec", name, "sh", "-c", f"cat /tmp/file; echo {name} > /tmp/file")
            assert written.stdout == b"common\n"
        for name in names:
            assert runner("exec", name, "cat", "/tmp/file").stdout.decode() == f"{name}\n"
            ended = runner("attach", name, input=f"said to {name}\n".encode())
            assert ended.returncode == 0
            assert runner("logs", name).stdout.decode().endswith(f"said to {name}\n")
    assert [path.name for path in home(runner).glob(".*")] == []


#: A line for every quarter of a second in which the program runs, written where nothing but the guest's memory is.
TICKS = "while :; do echo tick; sleep 0.25; done"


def test_a_paused_domain_is_saved_and_stays_paused(runner: Runner, room: Path) -> None:
    """No line is written by a save; the copies are paused too, and say so; all go on when they are resumed."""
    one, two, three = names = [f"{word}-{os.getpid()}" for word in ("still", "copy", "twin")]
    with domains(runner, *names):
        assert runner("run", "-d", "--name", one, "--", "sh", "-c", TICKS).returncode == 0
        with runner.popen("logs", "-f", one) as following:
            assert following.stdout is not None
            assert following.stdout.readline() == b"tick\n"
            following.kill()
        assert runner("pause", one).returncode == 0
        written = runner("logs", one).stdout
        assert runner("pause", one).returncode == 125
        assert "the domain is paused" in refused(runner, "disk", "add", one, f"a={room / 'image'}")
        done = runner("snapshot", "save", one, one)
        assert done.returncode == 0, done.stderr
        try:
            done = runner("snapshot", "restore", one, "--name", two)
            assert (done.returncode, done.stdout.decode()) == (0, f"{two}\n"), done.stderr
            assert f"{two} is paused, as what was saved" in done.stderr.decode()
        finally:
            assert runner("snapshot", "delete", one).returncode == 0
        assert runner("fork", one, "--name", three).stdout.decode() == f"{three}\n"
        states = {row["name"]: row["state"] for row in json.loads(runner("ps", "--json").stdout)}
        assert {states[name] for name in names} == {"paused"}
        assert (runner("logs", one).stdout, runner("logs", two).stdout) == (written, b"")
        seen = []
        for name in names:
            assert "is paused" in refused(runner, "exec", name, "true")
            assert runner("resume", name).returncode == 0
            with runner.popen("logs", "-f", name) as following:
                assert following.stdout is not None
                lines = written.count(b"\n") if name == one else 0
                assert [following.stdout.readline() for _ in range(lines + 2)] == [b"tick\n"] * (lines + 2)
                following.kill()
            seen.append(runner("exec", name, "cat", "/proc/sys/kernel/random/uuid", "/etc/machine-id").stdout)
        assert len(set(seen)) == 3
        # Two at once: one of them has done it, whatever the other is told.
        with runner.popen("pause", one):
            runner("pause", one)
        assert runner("resume", one).returncode == 0
        assert runner("exec", one, "true").returncode == 0


#: Sleeps until it is told (docs/snapshots.md), and says what it finds then.
TOLD = """
import ctypes, os
libc = ctypes.CDLL(None)
watch = libc.inotify_init1(0)
assert libc.inotify_add_watch(watch, b"/run", 0x100) > 0  # IN_CREATE
print("watching", flush=True)
os.read(watch, 4096)
print(open("/run/cloche/generation").read(), flush=True)
os.read(watch, 4096)
"""


def test_a_program_that_asks_is_told_in_a_fork_and_nowhere_else(cloche: Runner) -> None:
    """It is woken before it does anything else, and what it finds is whole; the one that was forked sleeps on."""
    one, two = (f"{word}-{os.getpid()}" for word in ("asks", "told"))
    with domains(cloche, one, two):
        done = cloche("run", "-d", "--name", one, "--privileged", "--", "python3", "-c", TOLD)
        assert done.returncode == 0, done.stderr
        with cloche.popen("logs", "-f", one) as following:
            assert following.stdout is not None
            assert following.stdout.readline() == b"watching\n"
            following.kill()
        assert cloche("fork", one, "--name", two).returncode == 0
        with cloche.popen("logs", "-f", two) as following:
            assert following.stdout is not None
            digits = following.stdout.readline().strip()
            following.kill()
        assert len(digits) == 32
        assert int(digits, 16)
        assert cloche("logs", one).stdout == b"watching\n"


def test_a_foreground_domain_is_saved_too(runner: Runner) -> None:
    """What a pipe had brought is there in the clone, then its input ends; `--stop` says what became of the domain."""
    name = f"pipe-{os.getpid()}"
    with (
        domains(runner, name),
        runner.popen("run", "--name", name, "--", "cat", stdin=subprocess.PIPE) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"before\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"before\n"
        done = runner("snapshot", "save", "--stop", name, name)
        assert done.returncode == 0, done.stderr
        assert process.wait() == 125
        assert f"was saved as {name}".encode() in process.stderr.read()
        assert runner("snapshot", "restore", name, "--name", name).returncode == 0
        assert runner("wait", name).returncode == 0
        assert runner("logs", name).stdout == b""
        assert runner("snapshot", "delete", name).returncode == 0


# What is refused


def refused(runner: Runner, *words: str) -> str:
    """Run what must fail; returns the one sentence that says why."""
    done = runner(*words)
    assert done.returncode == 125, done
    said = done.stderr.decode().splitlines()
    assert said[0].startswith("cloche: ")
    assert all(line.startswith("hint: ") for line in said[1:])
    return said[0]


@contextmanager
def changed(runner: Runner, name: str, **fields: object) -> Iterator[None]:
    """Change what a snapshot says of itself, with the right checksum."""
    path = home(runner) / name / snapshots.INFO
    whole = path.read_bytes()
    plain = json.loads(whole.partition(b"\n")[2])
    plain["surroundings"] |= fields
    path.write_bytes(snapshots.format_info(json.dumps(plain)))
    try:
        yield
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "field, value, what",
    [
        ("host", "5.4.0 #1", "another host's kernel: 5.4.0 #1"),
        ("qemu", "/usr/bin/qemu of 1 bytes", "another QEMU: /usr/bin/qemu of 1 bytes"),
        ("counter_khz", 1, "another counter's frequency: 1 kHz"),
        ("kernel", "6.1-other", "6.1-other"),
        ("words", ["-accel", "kvm"], "another machine than the one that would go on from it: it had kvm"),
    ],
)
def test_a_snapshot_of_something_else_is_refused(
    runner: Runner, saved: str, field: str, value: object, what: str
) -> None:
    """Another VMM, kernel, host or accelerator is named."""
    with changed(runner, saved, **{field: value}):
        said = refused(runner, "snapshot", "restore", saved)
    assert what in said


def test_a_share_that_is_not_there_any_more_is_named(runner: Runner, saved: str, room: Path) -> None:
    """A directory that is gone, or another one of the same name, is a clear error."""
    (room / "shared").rename(room / "away")
    try:
        assert "cannot be found any more" in refused(runner, "snapshot", "restore", saved)
        (room / "shared").mkdir()
        said = refused(runner, "snapshot", "restore", saved)
        assert f"{room / 'shared'} was shared with the domain" in said
        assert "something else is there now" in said
        (room / "shared").rmdir()
    finally:
        (room / "away").rename(room / "shared")
    name = f"back-{os.getpid()}"
    with domains(runner, name):
        assert runner("snapshot", "restore", saved, "--name", name).returncode == 0


@pytest.mark.parametrize("file", ["memory", "state", "info", "disk-data"])
def test_a_damaged_snapshot_is_refused(runner: Runner, saved: str, file: str) -> None:
    """One byte that is another one is found before anything is started; so is a file that is missing."""
    path = home(runner) / saved / file
    if file != "disk-data":
        at = 4096 * 1000 if file == "memory" else 500
        with open(path, "r+b") as damaged:
            before = os.pread(damaged.fileno(), 1, at)
            os.pwrite(damaged.fileno(), bytes([before[0] ^ 1]), at)
        try:
            said = refused(runner, "snapshot", "restore", saved)
            assert "damaged" in said or "checksum" in said
            assert runner("snapshot", "list", "--check").returncode == 125
        finally:
            with open(path, "r+b") as damaged:
                os.pwrite(damaged.fileno(), before, at)
    path.rename(path.with_name("away"))
    try:
        assert "No such file" in refused(runner, "snapshot", "restore", saved)
    finally:
        path.with_name("away").rename(path)


def test_what_cannot_be_saved_says_so_and_goes_on(runner: Runner) -> None:
    """When planning, and when asked; the domain is as before, and nothing is left."""
    name = f"dice-{os.getpid()}"
    plan = runner("run", "--dry-run", "--hwrng", "true").stdout.decode()
    assert "saveable    no: vhost-user-rng" in plan
    with domains(runner, name):
        assert runner("run", "-d", "--name", name, "--hwrng", "--", "sleep", "600").returncode == 0
        for words in (("snapshot", "save", name, name), ("fork", name), ("disk", "add", name, "a=/dev/null")):
            assert runner(*words).returncode == 125
        assert "this domain cannot be saved: vhost-user-rng" in refused(
            runner, "snapshot", "save", name, name
        )
        assert runner("exec", name, "true").returncode == 0
    assert [path for path in home(runner).glob("*") if path.name.startswith((".", name))] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_is_met_before_anything_is_lost(runner: Runner, tmp_path: Path) -> None:
    """One sentence, no snapshot, and the domain goes on; neither what failed nor what succeeded is kept open by it."""
    name = f"full-{os.getpid()}"
    entry = runner.user.entry
    data = Path(tempfile.mkdtemp(dir=runner.user.home, prefix="small-"))
    options = f"size=8M,mode=700,uid={entry.pw_uid},gid={entry.pw_gid}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(data)], check=True)
    env = {"XDG_DATA_HOME": str(data)}
    try:
        with domains(runner, name):
            started = runner(
                "run", "-d", "--name", name, "--", "sh", "-c", "while :; do echo .; sleep 0.1; done"
            )
            assert started.returncode == 0, started.stderr
            done = runner("snapshot", "save", name, name, env=env)
            assert done.returncode == 125
            assert b"No space left on device" in done.stderr
            assert b"It goes on" in done.stderr
            assert runner("snapshot", "list", env=env).stdout.startswith(b"There is no snapshot yet")
            assert list((data / "cloche" / "snapshots").iterdir()) == []
            assert runner("exec", name, "true").returncode == 0
            subprocess.run(["umount", str(data)], check=True)
            larger = options.replace("8M", "256M")
            subprocess.run(["mount", "-t", "tmpfs", "-o", larger, "tmpfs", str(data)], check=True)
            for number in range(2):
                saved = runner("snapshot", "save", name, f"{name}-{number}", env=env)
                assert saved.returncode == 0, saved.stderr
            subprocess.run(["umount", str(data)], check=True)
    finally:
        if os.path.ismount(data):
            subprocess.run(["umount", "--lazy", str(data)], check=True)
        data.rmdir()


def test_a_disk_is_added_while_a_program_runs(runner: Runner, room: Path) -> None:
    """It appears and is written to; the program and its streams go on; one that cannot be is refused."""
    name = f"disks-{os.getpid()}"
    new, other = room / "new", room / "other"
    for path in (new, other):
        make_image(runner, path)
    with domains(runner, name):
        start(runner, name, room)
        wait_for(runner, name, 3)
        done = runner("disk", "add", name, f"more={new}")
        assert (done.returncode, done.stdout) == (0, b"/dev/disk/by-tag/more\n"), done.stderr
        numbers = wait_for(runner, name, 40)
        assert numbers == list(range(1, 41))
        assert runner("exec", name, "sh", "-c", "echo written > /dev/disk/by-tag/more; sync").returncode == 0
        assert new.read_bytes().startswith(b"written\n")
        assert "two disks are called more" in refused(runner, "disk", "add", name, f"more={other}")
        assert "are the same file" in refused(runner, "disk", "add", name, f"again={new}")
        # Not there any more when it is opened.
        assert runner("disk", "add", name, f"gone={room / 'nothing'}").returncode == 125
        # Shares still come and go, and all holds.
        added = runner("share", "add", name, f"{room}:at=/srv/room")
        assert added.returncode == 0, added.stderr
        assert runner("exec", name, "cat", "/srv/room/new").stdout.startswith(b"written\n")
        assert_share_goes(runner, name, "/srv/room")
        audit = json.loads(runner("audit", "--json", name).stdout)
        assert audit["ok"], audit["failures"]
        assert wait_for(runner, name, 60) == list(range(1, 61))


def test_a_machine_that_was_booted_takes_no_disk(cloche: Runner, folder: Path) -> None:
    """Its kernel knows no other transports, and the error says so."""
    name = f"cold-{os.getpid()}"
    make_image(cloche, folder / "image")
    with domains(cloche, name):
        assert cloche("run", "-d", "--cold", "--name", name, "--", "sleep", "600").returncode == 0
        said = refused(cloche, "disk", "add", name, f"a={folder / 'image'}")
        assert "this machine was booted" in said
