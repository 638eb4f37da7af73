"""Every arrangement of devices gives the guest the same: trees, shares, disks, random numbers (`--devices`)."""

from __future__ import annotations

import email
import hashlib
import os
import select
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cloche.model.machine import NOT_APART, Devices
from support.domains import domain_processes, kill_part
from support.errors import check_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.runs import Runner

ARRANGEMENTS = (Devices.PROCESS, Devices.BUNDLED, Devices.VMM)
#: A tree of the host's that is on every one of them.
TREE = Path(email.__file__).parent
#: Changes that have to be on the host just so.
CHANGES = """set -e; cd share
umask 022; echo one > plain; echo two > secret; chmod 600 secret; mkdir -p deep/er; chmod 2750 deep
echo three > deep/er/old; mv deep/er/old deep/er/new; ln -s ../secret deep/link; ln plain deep/same
head -c 300000 /dev/urandom > large; truncate -s 200000 large; cat given
sha256sum large | cut -d' ' -f1; touch -d @1000000000 plain; rm removed; chown 12:34 secret || echo kept"""


@pytest.fixture(params=["ordinary", "root"])
def runner(request: pytest.FixtureRequest) -> Runner:
    """Provide cloche as an ordinary user runs it, and as root does where pytest is root."""
    name = "cloche" if request.param == "ordinary" else "cloche_as_caller"
    found: Runner = request.getfixturevalue(name)
    return found


@pytest.fixture(params=ARRANGEMENTS)
def devices(request: pytest.FixtureRequest) -> str:
    """Provide every arrangement."""
    return f"--devices={request.param}"


@pytest.fixture
def make(folder: Path, runner: Runner) -> Callable[[str, bytes], Path]:
    """Return what makes a file of the runner's."""
    entry = runner.user.entry
    os.chown(folder, entry.pw_uid, entry.pw_gid)

    def make(name: str, content: bytes) -> Path:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        for made in (path, path.parent):
            os.chown(made, entry.pw_uid, entry.pw_gid)
        return path

    return make


def digest(tree: Path) -> str:
    """Return a digest of the names, kinds and contents in a tree."""
    lines = []
    for directory, _, names in os.walk(tree):
        for name in names:
            path = Path(directory, name)
            if path.is_file() and not path.is_symlink() and path.suffix == ".py":
                lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


SUMS = f"find {TREE} -type f -name '*.py' -exec sha256sum {{}} + | LC_ALL=C sort | sha256sum"


def test_the_host_s_tree_is_the_same(runner: Runner, devices: str) -> None:
    """Every file of a tree has the content it has on the host."""
    ended = runner.sh(SUMS, devices)
    assert ended.stdout.split()[:1] == [digest(TREE).encode()], ended.stderr


def test_a_share_is_written_with_modes_and_owners(
    runner: Runner, devices: str, make: Callable[[str, bytes], Path]
) -> None:
    """What a guest's root does in a share is so on the host: names, modes, links, times, owners."""
    share = make("share/given", b"from the host\n").parent
    make("share/removed", b"")
    ended = runner.sh(CHANGES, "--privileged", devices, f"--share={share}:rw:at=/mnt/share", "--workdir=/mnt")
    assert ended.returncode == 0, ended.stderr
    said = ended.stdout.decode().splitlines()
    assert said[0] == "from the host"
    assert said[1] == hashlib.sha256((share / "large").read_bytes()).hexdigest()
    assert (share / "large").stat().st_size == 200000
    assert (share / "plain").stat().st_mtime == 1000000000
    assert (share / "plain").samefile(share / "deep/same")
    assert stat.S_IMODE((share / "secret").stat().st_mode) == 0o600
    assert stat.S_IMODE((share / "deep").stat().st_mode) & 0o777 == 0o750
    assert (share / "deep/link").readlink() == Path("../secret")
    assert (share / "deep/er/new").read_bytes() == b"three\n"
    assert sorted(path.name for path in share.iterdir()) == ["deep", "given", "large", "plain", "secret"]
    entry = runner.user.entry
    owner = (share / "secret").stat()
    expected = (12, 34) if entry.pw_uid == 0 else (entry.pw_uid, entry.pw_gid)
    assert (owner.st_uid, owner.st_gid) == expected


def test_a_disk_is_written_synced_and_read_back(
    runner: Runner, devices: str, make: Callable[[str, bytes], Path]
) -> None:
    """What was synced to a disk is in its image, and what was there is read."""
    image = make("disk.img", b"before" + bytes((8 << 20) - 6))
    content = os.urandom(1 << 20)
    data = make("share/data", content).parent
    script = (
        "set -e; cat /sys/block/vda/serial; echo; head -c 6 /dev/disk/by-tag/home; echo\n"
        "dd if=data of=/dev/disk/by-tag/home bs=64k seek=16 conv=fsync 2>/dev/null\n"
        "echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/disk/by-tag/home bs=1M skip=1 count=1 2>/dev/null | cmp - data"
    )
    words = ("--privileged", devices, f"--disk=home={image}", f"--share={data}", f"--workdir={data}")
    ended = runner.sh(script, *words)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == b"home\nbefore\n"
    written = image.read_bytes()
    assert written[1 << 20 : 2 << 20] == content
    assert len(written) == 8 << 20


def test_random_numbers_come_from_the_device(runner: Runner, devices: str) -> None:
    """/dev/hwrng is there exactly when it was asked for, and gives numbers that are not the same twice."""
    script = "cat /sys/class/misc/hw_random/rng_current; dd if=/dev/hwrng bs=512 count=4 iflag=fullblock 2>/dev/null"
    ended = runner.sh(script, "--privileged", devices, "--hwrng")
    name, _, numbers = ended.stdout.partition(b"\n")
    assert name.startswith(b"virtio_rng"), ended.stderr
    assert len(numbers) == 2048
    assert len({numbers[start : start + 64] for start in range(0, 2048, 64)}) == 32
    without = runner.sh("cat /sys/class/misc/hw_random/rng_current", devices)
    assert b"virtio" not in without.stdout


def test_a_run_says_what_it_gives_up(cloche: Runner) -> None:
    """Where devices are not apart every run says so in one line, and where they are none does."""
    for devices in ARRANGEMENTS:
        for _ in range(2):
            ended = cloche(f"--devices={devices}", "true")
            lines = [line for line in ended.stderr.decode().splitlines() if "--devices=" in line]
            told = [line for line in lines if NOT_APART.get(devices, "nothing") in line]
            assert len(told) == (devices in NOT_APART), ended.stderr


def test_what_cannot_be_is_refused(cloche: Runner) -> None:
    """An arrangement that does not exist, and one that a driver does not have, are refused with a sentence."""
    check_error(cloche("--devices=none", "true"), 125, "there is no arrangement 'none' of devices", "process")
    done = cloche("--driver=bwrap", "--devices=vmm", "true")
    check_error(done, 125, "the bwrap driver cannot do --devices=vmm")


def test_a_domain_ends_with_its_random_numbers(cloche: Runner) -> None:
    """QEMU takes no second process for random numbers: the death of the first ends the run, with the reason."""
    with cloche.popen("--hwrng", "sh", "-c", "echo up; sleep 1000") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        kill_part(process.pid, "cloche-rng")
        _, errors = process.communicate()
    assert process.returncode == 125
    assert b"the domain ended: its process rng was killed by signal 9" in errors


def switches(supervisor: int) -> dict[str, int]:
    """Return how often each thread of a domain but QEMU's has gone to sleep, and so was woken."""
    found = {}
    for pid in (supervisor, *domain_processes(supervisor)):
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        for task in Path(f"/proc/{pid}/task").iterdir():
            if not name.startswith("qemu"):
                fields = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
                found[f"{name} {task.name}"] = int(fields["voluntary_ctxt_switches"])
    return found


@pytest.mark.long
@pytest.mark.parametrize("devices", [Devices.PROCESS, Devices.BUNDLED])
@pytest.mark.parametrize("runner", ["ordinary"], indirect=True)
def test_an_idle_domain_does_not_wake_up(
    runner: Runner, devices: str, make: Callable[[str, bytes], Path]
) -> None:
    """While its guest stands still for a minute no process of a domain but QEMU wakes up; then they do."""
    image, share = make("disk.img", bytes(8 << 20)), make("share/file", b"").parent
    words = (f"--devices={devices}", f"--disk=home={image}", f"--share={share}:rw:at=/mnt/share")
    script = "cat /mnt/share/file; echo up; read go; echo > /mnt/share/new"
    with runner.popen(*words, "sh", "-c", script, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        # Nothing comes for so long: first the aftermath of the start ends, then it is counted.
        assert not select.select([process.stdout], [], [], 5)[0]
        before = switches(process.pid)
        assert not select.select([process.stdout], [], [], 60)[0]
        assert switches(process.pid) == before
        assert len(before) >= 4
        process.communicate(b"\n")
    assert process.returncode == 0
    assert (share / "new").exists()
