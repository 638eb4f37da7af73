"""A profile survives a loss of power: what a program knew to be durable is there, and the profile can be started."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cloche.plan.guest import OVERLAY_OPTIONS
from support.domains import domain_processes
from support.powerloss import Flush, crash, put, read_log, traced

if TYPE_CHECKING:
    from support.powerloss import Crash, Write
    from support.runs import Runner

#: What each step leaves under its name: its number over and over, in some length.
STEPS, NAMES = 60, 12
PATTERN = """
import random
def sizes():
    pick = random.Random(5)
    return [pick.choice((100, 5000, 70000, 150000)) for _ in range(STEPS)]
def content(number): return (b"%d;" % number * 80000)[:sizes()[number]]
def is_replaced(number): return number % 3 != 0
""".replace("STEPS", str(STEPS))

#: Makes, replaces and removes files in the profile's layer, and marks what it knows to be durable.
WORK = (
    PATTERN
    + """
import mmap, os, sys
home = os.path.expanduser("~/work"); os.mkdir(home); os.chdir(home)
page = mmap.mmap(-1, 4096)
marks = os.open("marks", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
os.write(marks, page); os.sync()
print("up", flush=True); sys.stdin.readline()
for number in range(STEPS):
    name = "f%d" % (number % NAMES)
    fresh = name + ".new" if is_replaced(number) else name
    if fresh == name and os.path.exists(name): os.unlink(name)
    with open(fresh, "wb") as file:
        file.write(content(number)); file.flush(); os.fsync(file.fileno())
    if fresh != name: os.rename(fresh, name)
    top = os.open(".", os.O_RDONLY); os.fsync(top); os.close(top)
    page[:] = (b"cloche-mark %d;" % number).ljust(4096, b".")
    os.pwrite(marks, page, 0)
    with open("/usr/share/doc/unsynced%d" % number, "wb") as file: file.write(content(number))
print("done", flush=True)
""".replace("STEPS", str(STEPS)).replace("NAMES", str(NAMES))
)

#: Looks at each image as a start does: e2fsck, mount, overlay; and then reads what must be there.
LOOK = (
    PATTERN
    + """
import glob, os, subprocess, sys
os.chdir("/mnt/states"); os.makedirs("/mnt/disk", exist_ok=True); os.makedirs("/mnt/layer", exist_ok=True)
def said(*argv):
    done = subprocess.run(argv, capture_output=True)
    return "" if done.returncode == 0 else repr((argv[0], done.returncode, done.stdout[-200:], done.stderr[-200:]))
def missing(mark):
    [work] = glob.glob("/mnt/disk/upper/*/work") + glob.glob("/mnt/disk/upper/*/*/work")
    for number in range(max(0, mark + 1 - NAMES), mark + 1):
        try: data = open("%s/f%d" % (work, number % NAMES), "rb").read()
        except OSError: data = b""
        begun = mark + 1 if (mark + 1 - number) == NAMES and mark + 1 < STEPS else None
        if data != content(number) and (begun is None or is_replaced(begun) and data != content(begun)):
            return "lost %d at %d: %r" % (number, mark, data[:20])
    return ""
def look(image, mark):
    checked = subprocess.run(["e2fsck", "-p", image], capture_output=True)
    if checked.returncode & ~3: return "e2fsck %d: %r" % (checked.returncode, checked.stdout[-200:])
    # Not mount -o loop: that has the device open for writing while it mounts, which this kernel does not allow.
    loop = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, check=True).stdout.decode().strip()
    wrong = said("mount", "-o", "noatime", loop, "/mnt/disk")
    if wrong: return wrong
    try:
        options = "lowerdir=/usr,upperdir=/mnt/disk/upper,workdir=/mnt/disk/work," + sys.argv[1]
        wrong = said("mount", "-t", "overlay", "layer", "-o", options, "/mnt/layer") or said("ls", "/mnt/layer")
        said("umount", "/mnt/layer")
        return wrong or missing(mark) or "whole"
    finally:
        subprocess.run(["umount", "/mnt/disk"], check=True)
        subprocess.run(["losetup", "-d", loop], check=True)
for line in open("list"):
    image, mark = line.split()
    print(image, look(image, int(mark)), flush=True)
""".replace("STEPS", str(STEPS)).replace("NAMES", str(NAMES))
)


@pytest.fixture(scope="module")
def recorded(
    cloche_as_caller: Runner, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Write | Flush]]:
    """Return a profile's disk at some moment, and what a guest had written to it after that."""
    runner = cloche_as_caller
    place = tmp_path_factory.mktemp("power")
    assert runner("profile", "new", "--size", "64M", "power").returncode == 0
    image = runner.user.home / ".local/share/cloche/profiles/power/disk.img"
    try:
        argv = ("-p", "power", "--privileged", "python3", "-c", WORK)
        with runner.popen(*argv, stdin=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            assert process.stdout.readline() == b"up\n", process.stderr
            [disk] = [
                pid
                for pid in domain_processes(process.pid)
                if Path(f"/proc/{pid}/comm").read_text() == "cloche-disk\n"
            ]
            with traced(disk, place / "log"):
                shutil.copyfile(image, place / "base")
                process.stdin.write(b"\n")
                process.stdin.flush()
                assert process.stdout.readline() == b"done\n"
                process.stdin.close()
                assert process.wait(120) == 0
        return place / "base", read_log(place / "log")
    finally:
        runner("profile", "delete", "power")


def look(runner: Runner, states: list[Crash], base: Path, folder: Path) -> list[str]:
    """Have a guest look at the disks that losses of power leave, one after the other; return what it says of each."""
    lines = []
    for number, state in enumerate(states):
        put(folder / str(number), base, state)
        lines.append(f"{number} {state.mark}\n")
    (folder / "list").write_text("".join(lines))
    share = f"--share={folder}:rw:at=/mnt/states"
    done = runner(share, "--privileged", "python3", "-c", LOOK, OVERLAY_OPTIONS.decode(), timeout=3000)
    assert done.returncode == 0, done.stderr
    said = done.stdout.decode().splitlines()
    assert len(said) == len(states)
    return [line.partition(" ")[2] for line in said]


@pytest.mark.parametrize("count", [8, pytest.param(100, marks=pytest.mark.long)])
def test_nothing_durable_is_lost(
    cloche_as_caller: Runner, recorded: tuple[Path, list[Write | Flush]], tmp_path: Path, count: int
) -> None:
    """Whenever the power goes, the file system can be mended and mounted, and every file that was synced is whole."""
    base, log = recorded
    assert sum(isinstance(one, Flush) for one in log) > 60
    pick = random.Random()
    states = [crash(log, pick) for _ in range(count)]
    assert set(look(cloche_as_caller, states, base, tmp_path)) == {"whole"}


def test_a_disk_whose_flush_does_nothing_loses(
    cloche_as_caller: Runner, recorded: tuple[Path, list[Write | Flush]], tmp_path: Path
) -> None:
    """The same without the flushes: something that was synced is lost, or the file system is."""
    base, log = recorded
    deaf = [one for one in log if not isinstance(one, Flush)]
    pick = random.Random(1)
    states = [crash(deaf, pick) for _ in range(4)]
    assert set(look(cloche_as_caller, states, base, tmp_path)) != {"whole"}
