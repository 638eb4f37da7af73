"""Somebody with few descriptors and many files: a hard limit of 4096, as many systems give ordinary users."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path
    from subprocess import CompletedProcess

    from support.runs import Runner

FEW = ["prlimit", "--nofile=4096:4096"]
DIRECTORIES = 2000
FILES_EACH = 100


def with_few(cloche: Runner, script: str, *options: str) -> CompletedProcess[bytes]:
    """Run a script in a guest whose file servers have 4096 descriptors each."""
    words = [*FEW, cloche.program, *options, "sh", "-c", f"ulimit -n >&2; {script}"]
    return cloche.user.run(words, timeout=3000)


@pytest.fixture
def tree(cloche: Runner, folder: Path) -> Path:
    """Make a directory of the ordinary user's with 200,000 files in it."""
    for number in range(DIRECTORIES):
        directory = folder / "source" / f"{number // 50:02}" / f"{number:04}"
        directory.mkdir(parents=True)
        for index in range(FILES_EACH):
            (directory / f"{index:02}").write_bytes(b"%d %d\n" % (number, index) * (1 + index % 8))
    if os.geteuid() == 0:
        user = cloche.user.entry
        shutil.chown(folder, user.pw_uid, user.pw_gid)
        for where, directories, files in os.walk(folder):
            for name in (*directories, *files):
                os.chown(os.path.join(where, name), user.pw_uid, user.pw_gid)
    return folder


@pytest.mark.long
def test_every_name_of_the_guest_can_be_listed(cloche: Runner) -> None:
    """``find /`` goes through all of the system's tree without running out of anything."""
    done = with_few(cloche, "find / -path /proc -prune -o -print | wc -l")
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 0
    assert not [line for line in lines if "Too many open files" in line or "error" in line]
    assert all("Permission denied" in line for line in lines if line.startswith("find:")), lines
    of_usr = sum(1 + len(files) for _, _, files in os.walk("/usr"))
    assert int(done.stdout) > of_usr


@pytest.mark.long
def test_two_hundred_thousand_files_are_copied_through_a_share(cloche: Runner, tree: Path) -> None:
    """``cp -r`` of a tree of 200,000 files within a writable share makes all of them, with what was in them."""
    done = with_few(cloche, f"cd {tree} && cp -r source copy", "--share", f"{tree}:rw")
    assert (done.returncode, done.stdout) == (0, b""), done.stderr[-2000:]
    made = {
        os.path.relpath(os.path.join(where, name), tree / "copy")
        for where, _, files in os.walk(tree / "copy")
        for name in files
    }
    assert len(made) == DIRECTORIES * FILES_EACH
    for name in random.Random(1).sample(sorted(made), 5000):
        copied, source = tree / "copy" / name, tree / "source" / name
        assert hashlib.sha256(copied.read_bytes()).digest() == hashlib.sha256(source.read_bytes()).digest()
