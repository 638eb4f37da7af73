"""A tree of files in a guest: an archive is unpacked, and git looks at what came out, wherever can be written to.

The archive is a repository with its files. It lies in the guest's memory before the clock starts, and some of it was
unpacked before, so that only the place it is unpacked to is measured; the clock is outside, as in ``guestwork``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench import machines, profiles, rounds
from bench.devices import running
from bench.goals import TREE_PROFILE, TREE_RAW, TREE_SHARE
from bench.prepare import CLOCHE
from bench.rounds import Candidate, MeasureError, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.machines import Computer

#: Files in the archive, and bytes of each.
FILES, FILE_BYTES = 5000, 2048
_DIRECTORIES = 100
STEPS = ("untar", "git status", "git status again", "sync")
_DISK_BYTES = 1 << 30
_GIT = "git -c safe.directory='*' -c core.untrackedCache=false"
#: What the guest does at a place ($1) with an archive ($2).
_SCRIPT = f"""
cat "$2" >/run/tree.tar
mkdir -p "$1/tree" && cd "$1/tree"
export HOME=/run
mkdir warm && tar xf /run/tree.tar -C warm --wildcards './d1*' && rm -r warm
echo @0
tar xf /run/tree.tar && find . -path './d*' -type f | wc -l
echo @1
{_GIT} status --porcelain | wc -l
echo @2
{_GIT} status --porcelain | wc -l
echo @3
sync
echo 0
echo @4
"""
_RAW = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
stty -onlcr
mount -t proc proc /proc
mount -t tmpfs run /run
mount -t ext4 -o noatime,discard /dev/vda /mnt
"""


class Trees(NamedTuple):
    """What is unpacked, and where.

    Attributes:
        archive: It.
        profile: The name of a profile.
        place: A directory of the host that is shared, not the archive's own.
        image: A raw image with an ext4.
        init: The first program of raw QEMU.
    """

    archive: Path
    profile: str
    place: Path
    image: Path
    init: Path


def measure(computer: Computer | None, number: int, budget_s: float) -> Outcome:
    """Measure a profile, a writable share and raw QEMU's own disk in turns."""
    with prepared() as given:
        shared = ("-t", "--share", f"{given.place}:rw")
        candidates = [
            Candidate(TREE_PROFILE, lambda: measure_cloche(given, "-p", given.profile, place="/root")),
            Candidate(TREE_SHARE, lambda: measure_cloche(given, *shared, place=str(given.place)), 3),
        ]
        if computer:
            candidates.append(Candidate(TREE_RAW, lambda: measure_raw(given, computer)))
        return rounds.take_turns(candidates, number, budget_s, warm_up=False)


@contextmanager
def prepared() -> Iterator[Trees]:
    """Provide all of it; nothing stays."""
    with tempfile.TemporaryDirectory(prefix="cloche-bench-", dir="/var/tmp") as top:
        archive = Path(top, "archive", "tree.tar")
        _make_archive(archive, Path(top, "made"))
        place, image, init = (Path(top, name) for name in ("place", "raw.img", "init"))
        place.mkdir()
        # As a profile's is made (host/profiles.py).
        with image.open("wb") as file:
            file.truncate(_DISK_BYTES)
        options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard"
        _run("mkfs.ext4", "-q", "-F", "-m", "0", "-J", "size=32", "-E", options, str(image))
        words = f"set -- /mnt {archive}"
        init.write_text(f"{_RAW}{words}\n{_SCRIPT}\ncd /; rm -r /mnt/tree; umount /mnt\n")
        init.chmod(0o755)
        with profiles.used(0) as name:
            yield Trees(archive, name, place, image, init)


def measure_cloche(trees: Trees, *words: str, place: str) -> dict[str, float]:
    """Unpack it at a place of cloche's guest.

    Raises:
        MeasureError: The guest found something else.
    """
    share = ("--share", f"{trees.archive.parent}")
    script = ("sh", "-c", _SCRIPT + f'rm -r "{place}/tree"', "sh", place, str(trees.archive))
    return _measure([str(CLOCHE), "run", "--privileged", "--no-tty", *share, *words, "--", *script])


def measure_raw(trees: Trees, computer: Computer) -> dict[str, float]:
    """Unpack it on raw QEMU's own disk.

    Raises:
        MeasureError: The guest found something else.
    """
    drive = ("-drive", f"file={trees.image},if=none,id=disk,format=raw,discard=unmap")
    raw = machines.raw_qemu(computer, str(trees.init), console=True)
    return _measure([*raw, *drive, "-device", "virtio-blk-device,drive=disk"])


def _measure(words: list[str]) -> dict[str, float]:
    with running(words) as guest:
        guest.hear(0)
        return {step: guest.time(number, FILES * (number == 1)) for number, step in enumerate(STEPS, 1)}


def _make_archive(archive: Path, made: Path) -> None:
    archive.parent.mkdir()
    block = os.urandom(FILE_BYTES).hex().encode()
    for number in range(FILES):
        path = made / f"d{number % _DIRECTORIES}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d\n" % number + block[: FILE_BYTES - 8])
    git = ("git", "-C", str(made), "-c", "user.name=bench", "-c", "user.email=bench")
    for words in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "all"), ("gc", "-q")):
        _run(*git, *words)
    _run("tar", "--owner=0", "--group=0", "-C", str(made), "-cf", str(archive), ".")
    shutil.rmtree(made)


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, check=False)
    if done.returncode:
        raise MeasureError(f"{words[0]}: {done.stderr.decode('utf-8', 'replace').strip()[-200:]}")
