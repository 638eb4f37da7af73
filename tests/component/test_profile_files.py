"""Exporting and importing profiles with the command itself: nothing half appears, nothing is taken over unasked."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from cloche.host import profiles
from cloche.host.profile_archive import write_archive
from cloche.host.profile_lock import Hold
from support.errors import check_error

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 64 << 20


class Store:
    """Profiles of their own below a directory."""

    def __init__(self, data: Path, program: Path) -> None:
        """Nothing is there yet."""
        self.profiles = data / "cloche" / "profiles"
        self.program = program

    def __call__(self, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run ``cloche profile ...``."""
        argv = [str(self.program), "profile", *words]
        return subprocess.run(argv, input=stdin, capture_output=True, timeout=60, check=False)

    def fill(self, name: str, seed: int = 1) -> bytes:
        """Make a profile with a disk of noise and holes; return the disk."""
        self("new", "--size", "64M", name).check_returncode()
        pick = random.Random(seed)
        with open(self.profiles / name / "disk.img", "r+b") as file:
            for _ in range(30):
                file.seek(pick.randrange(SIZE - 65536))
                file.write(pick.randbytes(65536))
        return (self.profiles / name / "disk.img").read_bytes()

    def names(self) -> list[str]:
        """Return what a listing shows."""
        return [line.split()[0].decode() for line in self("list").stdout.splitlines()]


@pytest.fixture
def store(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Return an empty store, which this process uses, too."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return Store(tmp_path / "data", project / "bin" / "cloche")


def test_a_profile_goes_through_a_file_and_through_a_pipe(store: Store, tmp_path: Path) -> None:
    """Disk and settings are the same elsewhere, and a file that is there is never written over."""
    disk = store.fill("one")
    settings = store.profiles / "one" / "cloche.toml"
    settings.write_text('version = 1\nlabel = "Work"\n')
    file = tmp_path / "one.profile"
    store("export", "one", str(file)).check_returncode()
    check_error(store("export", "one", str(file)), 125, f"there is a file {file} already", "another name")
    done = store("import", str(file), "two")
    assert done.stdout == b"two\n", done.stderr
    done = store("import", "-", "three", stdin=store("export", "one", "-").stdout)
    assert done.returncode == 0, done.stderr
    for name in ("two", "three"):
        assert (store.profiles / name / "disk.img").read_bytes() == disk
        assert (store.profiles / name / "cloche.toml").read_text() == settings.read_text()
    used = (store.profiles / "two" / "disk.img").stat().st_blocks * 512
    assert used < SIZE // 4
    check_error(store("import", str(file)), 125, "there is a profile one already", "another name")
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_profile_in_use_is_not_exported(store: Store, tmp_path: Path) -> None:
    """What changes meanwhile is nobody's to copy."""
    store.fill("one")
    hold = Hold.take("one")
    try:
        check_error(
            store("export", "one", str(tmp_path / "file")), 125, "the profile one is in use", "joins it"
        )
    finally:
        hold.release(is_clean=True)
    assert not (tmp_path / "file").exists()


def test_settings_that_open_something_are_left_out_unless_asked_for(store: Store, tmp_path: Path) -> None:
    """A profile from elsewhere shows a guest nothing of this host by itself; what makes no sense is refused."""
    store.fill("one")
    settings = store.profiles / "one" / "cloche.toml"
    settings.write_text('version = 1\nshare = ["/home:rw"]\n')
    file = tmp_path / "one.profile"
    store("export", "one", str(file)).check_returncode()
    done = store("import", str(file), "two")
    assert done.returncode == 0
    assert b"left out, because they say share: --settings takes them" in done.stderr
    assert not (store.profiles / "two" / "cloche.toml").exists()
    store("import", "--settings", str(file), "three").check_returncode()
    assert (store.profiles / "three" / "cloche.toml").read_text() == settings.read_text()
    settings.write_text("nonsense = 1\n")
    broken = tmp_path / "broken.profile"
    store("export", "one", str(broken)).check_returncode()
    assert store("import", "--settings", str(broken), "four").returncode == 125
    assert store.names() == ["one", "three", "two"]


def test_a_disk_larger_than_allowed_is_refused_before_it_is_made(store: Store, tmp_path: Path) -> None:
    """The limit can be raised; nothing is left of a refused one."""
    store.fill("one")
    file = tmp_path / "one.profile"
    store("export", "one", str(file)).check_returncode()
    done = store("import", "--most", "32M", str(file), "two")
    check_error(
        done, 125, "the profile has a disk of 64 MiB, and 32 MiB is the most that is taken", "--most 1G"
    )
    store("import", "--most", "64M", str(file), "two").check_returncode()
    assert sorted(os.listdir(store.profiles)) == ["one", "two"]


@pytest.mark.parametrize("size", [0, 512, 1 << 20, SIZE + 512])
def test_a_disk_that_no_profile_can_have_is_refused(store: Store, tmp_path: Path, size: int) -> None:
    """Nothing is imported that no run could use."""
    file = tmp_path / "file"
    parts: list[bytes] = []
    with open(tmp_path / "disk", "x+b") as disk:
        os.ftruncate(disk.fileno(), size)
        write_archive("one", disk.fileno(), b"", parts.append, lambda *_: None)
    file.write_bytes(b"".join(parts))
    check_error(store("import", str(file)), 125, f"no profile has a disk of {size} bytes")
    assert store.names() == []


def test_settings_longer_than_any_that_are_read_are_refused(store: Store, tmp_path: Path) -> None:
    """They would end every run of the profile."""
    store.fill("one")
    with open(store.profiles / "one" / "cloche.toml", "wb") as file:
        file.write(b"#" * 65537)
    check_error(store("export", "one", str(tmp_path / "file")), 125, "too large to be exported")


def test_settings_that_are_no_file_are_not_waited_for(store: Store, tmp_path: Path) -> None:
    """A FIFO in their place is refused; nothing waits for whoever might write to it."""
    store.fill("one")
    os.mkfifo(store.profiles / "one" / "cloche.toml")
    check_error(store("export", "one", str(tmp_path / "file")), 125, "is no file", "move it away")
    assert os.listdir(tmp_path) == ["data"]


#: The same import in the place of the finished one: what a kill leaves has the name.
AT_ITS_PLACE = """
import os, sys
from cloche.cli.main import main
from cloche.host import profiles
class at_its_place:
    def __enter__(self):
        path = os.path.join(profiles.home(), "two")
        os.mkdir(path, 0o700)
        return path
    def __exit__(self, *error): pass
profiles.building = at_its_place
profiles.publish = lambda place, name: None
sys.exit(main())
"""


@pytest.mark.parametrize("is_careful", [True, False], ids=["as it is", "at its place"])
def test_an_import_that_is_killed_leaves_nothing_half(
    store: Store, project: Path, *, is_careful: bool
) -> None:
    """Wherever it is killed there is no such profile, or it is whole; without the care there would be a half."""
    disk = store.fill("one")
    stream = store("export", "one", "-").stdout
    start = [str(store.program)] if is_careful else [sys.executable, "-c", AT_ITS_PLACE]
    environment = {**os.environ, "PYTHONPATH": str(project / "src")}
    pick = random.Random()
    seen = set()
    for cut in (0, 40, len(stream), *(pick.randrange(len(stream)) for _ in range(9))):
        argv = [*start, "profile", "import", "-", "two"]
        process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment
        )
        assert process.stdin is not None
        process.stdin.write(stream[:cut])
        process.stdin.flush()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdin.close()
        image = store.profiles / "two" / "disk.img"
        seen.add(("whole" if image.read_bytes() == disk else "half") if image.exists() else "none")
        # The next command takes away what was begun.
        store("new", "--size", "64M", "next").check_returncode()
        left = [name for name in os.listdir(store.profiles) if name.startswith(".")]
        assert left == [] or not is_careful
        store("delete", "next").check_returncode()
        if "two" in os.listdir(store.profiles):
            profiles.remove_tree(str(store.profiles / "two"))
    assert ("half" in seen) is not is_careful
    assert "none" in seen or not is_careful


def test_an_export_that_is_killed_leaves_no_file(store: Store, tmp_path: Path) -> None:
    """The file has no name before it is whole."""
    store.fill("one")
    place = tmp_path / "place"
    place.mkdir()
    for number in range(8):
        process = subprocess.Popen(
            [str(store.program), "profile", "export", "one", str(place / str(number))],
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None
        # It has begun when it says so, and goes on while it is killed.
        process.stderr.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
    for path in place.iterdir():
        assert store("import", str(path), f"n{path.name}").returncode == 0
