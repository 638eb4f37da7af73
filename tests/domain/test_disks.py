"""Disks in real machines: what is written stays, and the death of a disk's process is not noticed by the guest."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.disks import empty_qcow2
from support.domains import domain_processes
from support.errors import check_error

if TYPE_CHECKING:
    from support.runs import Runner

DISK = "/dev/disk/by-tag/home"
MOUNT = f"mkdir /run/disk; mount {DISK} /run/disk; cd /run/disk"

#: Two threads write to places of their own and make each write durable before they count it; then everything is read.
WRITER = """
import os, random, threading
size, count = 4096, int(os.environ["WRITES"])
fd = os.open("/dev/disk/by-tag/home", os.O_RDWR)
held = {}
def write(thread):
    pick = random.Random(thread)
    for number in range(1, count + 1):
        place = 2 * pick.randrange(2000) + thread
        page = b"%d %d;" % (thread, number)
        os.pwrite(fd, (page * size)[:size], place * size)
        os.fdatasync(fd)
        held[place] = page
        if number % 20 == 0:
            print(number, flush=True)
threads = [threading.Thread(target=write, args=(thread,)) for thread in (0, 1)]
for thread in threads: thread.start()
for thread in threads: thread.join()
os.close(fd)
open("/proc/sys/vm/drop_caches", "w").write("3")
fd = os.open("/dev/disk/by-tag/home", os.O_RDONLY)
for place, page in held.items():
    found = os.pread(fd, size, place * size)
    assert found == (page * size)[:size], (place, page, found[:40])
print("all", len(held) > 100, flush=True)
"""


@pytest.fixture
def image(folder: Path, cloche: Runner) -> Path:
    """Return an empty disk image of the ordinary user's."""
    path = folder / "disk.img"
    cloche.user.run(["truncate", "-s", "64M", str(path)]).check_returncode()
    return path


def disk_process(supervisor: int) -> int | None:
    """Return the process of the disk, if there is one now."""
    for pid in domain_processes(supervisor):
        try:
            if Path(f"/proc/{pid}/comm").read_text() == "cloche-disk\n":
                return pid
        except OSError:
            continue
    return None


def test_a_disk_keeps_what_was_written(cloche: Runner, image: Path) -> None:
    """What a program left in a file system is there in the next machine, under the disk's tag and serial number."""
    first = cloche.sh(
        f"mkfs.ext4 -q {DISK}; {MOUNT}; echo kept > file", "--privileged", f"--disk=home={image}"
    )
    assert first.returncode == 0, first.stderr
    again = cloche.sh(
        f"cat /sys/block/vda/serial; echo; {MOUNT}; cat file", "--privileged", f"--disk=home={image}"
    )
    assert again.stdout == b"home\nkept\n", again.stderr


def test_a_disk_that_must_not_change_does_not(cloche: Runner, image: Path) -> None:
    """The guest cannot write to a disk that was given read-only, whatever it tries, and the file stays as it is."""
    before = image.read_bytes()
    ended = cloche.sh(
        f"blockdev --setrw {DISK}; dd if=/dev/zero bs=4k count=1 of={DISK} conv=fsync || echo refused",
        "--privileged",
        f"--disk=home={image},ro",
    )
    assert ended.stdout == b"refused\n", ended.stderr
    assert image.read_bytes() == before


def test_two_disks_have_their_own_names(cloche: Runner, image: Path) -> None:
    """Each tag leads to the disk with that serial number."""
    other = image.with_name("other.img")
    cloche.user.run(["truncate", "-s", "1M", str(other)]).check_returncode()
    ended = cloche.sh(
        "for tag in home other; do cat /sys/block/$(basename $(readlink /dev/disk/by-tag/$tag))/serial; echo; done",
        f"--disk=home={image}",
        f"--disk=other={other}",
    )
    assert ended.stdout == b"home\nother\n", ended.stderr


def test_space_that_the_guest_gives_up_is_given_back(cloche: Runner, image: Path) -> None:
    """What the guest discards takes no space in the host's file any more."""
    script = f"mkfs.ext4 -q -E nodiscard {DISK}; {MOUNT}; head -c 20M /dev/urandom > file; sync; "
    ended = cloche.sh(script + "rm file; sync; fstrim /run/disk", "--privileged", f"--disk=home={image}")
    assert ended.returncode == 0, ended.stderr
    assert image.stat().st_blocks * 512 < 10 << 20


def kill_while_running(process: subprocess.Popen[bytes], kills: int, chance: float) -> list[bytes]:
    """Kill the disk's process now and then while a machine says what it does; returns what it said."""
    assert process.stdout is not None
    pick = random.Random()
    said = []
    for line in process.stdout:
        said.append(line)
        # Once in any case.
        now = kills and (len(said) == 1 or pick.random() < chance)
        victim = disk_process(process.pid) if now else None
        if victim is not None:
            kills -= 1
            os.kill(victim, signal.SIGKILL)
    return said


def test_the_guest_goes_on_when_the_disk_is_killed(cloche: Runner, image: Path) -> None:
    """Files that were synced while the disk's process was killed are whole, and so is the file system."""
    script = f"""set -e; mkfs.ext4 -q {DISK}; {MOUNT}
    for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do
        dd if=/dev/urandom of=$i bs=64k count=8 conv=fsync 2>/dev/null; sha256sum $i >> /run/sums; echo $i
    done
    cd /; umount /run/disk; e2fsck -fn {DISK} >&2; {MOUNT.replace("mkdir /run/disk; ", "")}
    sha256sum --quiet -c /run/sums; echo whole"""
    with cloche.popen("--privileged", f"--disk=home={image}", "sh", "-c", script) as process:
        said = kill_while_running(process, kills=4, chance=0.5)
        assert process.stderr is not None
        errors = process.stderr.read()
    assert said[-1:] == [b"whole\n"], errors
    assert errors.count(b"is started again") >= 1


@pytest.mark.parametrize("writes", [200, pytest.param(4000, marks=pytest.mark.long)])
def test_no_acknowledged_write_is_lost(cloche: Runner, image: Path, writes: int) -> None:
    """Whatever was made durable before the disk's process was killed, or after, is read back."""
    words = ("--privileged", f"--disk=home={image}", "-e", f"WRITES={writes}", "python3", "-c", WRITER)
    with cloche.popen(*words) as process:
        said = kill_while_running(process, kills=5, chance=0.3)
        assert process.stderr is not None
        errors = process.stderr.read()
    assert said[-1:] == [b"all True\n"], errors
    assert errors.count(b"is started again") >= 1


def test_a_disk_that_dies_again_and_again_ends_the_domain(cloche: Runner, image: Path) -> None:
    """After some deaths within a minute the run ends with 125 and says why."""
    with cloche.popen(f"--disk=home={image}", "sh", "-c", "echo up; sleep 1000") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        killed = set()
        while process.poll() is None:
            victim = disk_process(process.pid)
            if victim is not None and victim not in killed:
                killed.add(victim)
                os.kill(victim, signal.SIGKILL)
        assert process.stderr is not None
        errors = process.stderr.read()
    assert process.returncode == 125
    assert (
        b"cloche: the domain ended: its process disk-home was killed by signal 9, the last of 6 times"
        in errors
    )


def test_a_disk_in_use_is_refused(cloche: Runner, image: Path) -> None:
    """A second machine does not get a disk that the first may write."""
    with cloche.popen(
        f"--disk=home={image}", "sh", "-c", "echo up; read x", stdin=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        second = cloche("--disk", f"home={image}", "true")
        process.communicate(b"\n")
    assert second.returncode == 125
    assert second.stderr.startswith(b"cloche: cannot use ")
    assert b"another domain has it" in second.stderr


def test_an_image_that_cannot_be_used_is_said_once(cloche: Runner, image: Path) -> None:
    """An image of another format is refused with one sentence, and its process is not started again and again."""
    done = cloche("--disk", f"home={image},format=qcow2", "true")
    check_error(done, 125, f"cannot use {image} as a disk", "Not a qcow2 file", "format=raw")


def test_a_qcow2_image_is_whole_after_kills(cloche: Runner, image: Path) -> None:
    """A disk in a qcow2 image loses nothing either, and only what was written takes space."""
    small = image.with_name("disk.qcow2")
    cloche.user.run(["tee", str(small)], input=empty_qcow2(64 << 20)).check_returncode()
    words = ("--privileged", f"--disk=home={small},format=qcow2", "-e", "WRITES=200", "python3", "-c", WRITER)
    with cloche.popen(*words) as process:
        said = kill_while_running(process, kills=4, chance=0.3)
        assert process.stderr is not None
        errors = process.stderr.read()
    assert said[-1:] == [b"all True\n"], errors
    assert errors.count(b"is started again") >= 1
    assert small.stat().st_size < 64 << 20
