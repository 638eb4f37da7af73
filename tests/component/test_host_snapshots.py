"""The directory of the snapshots: nothing half-written is ever listed, and nothing of others' is used."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from cloche.errors import SnapshotError
from cloche.host import snapshots, templates
from cloche.host.sparse import checksum_memory, copy_file, copy_memory, run_through

PAGE = 4096


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test snapshots of its own."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path / "cloche" / "snapshots"


def make(name: str, text: str = "{}") -> None:
    """Make a snapshot."""
    with snapshots.building() as directory:
        snapshots.write_file(directory, snapshots.MEMORY, b"memory")
        snapshots.write_file(directory, snapshots.INFO, snapshots.format_info(text))
        snapshots.publish(directory, name)


def test_a_snapshot_appears_whole_and_goes(home: Path) -> None:
    """It is listed when it has its name, private, and gone when it is deleted."""
    make("one", "text")
    assert snapshots.names() == ["one"]
    directory = snapshots.locate("one")
    assert os.stat(directory).st_mode & 0o777 == 0o700
    assert snapshots.read_info(directory) == "text"
    snapshots.delete("one")
    assert list(home.iterdir()) == []
    for gone in ("one", "", "..", "a/b", ".new-1"):
        with pytest.raises(SnapshotError, match="you have no snapshot"):
            snapshots.delete(gone)
        with pytest.raises(SnapshotError, match="you have no snapshot"):
            snapshots.locate(gone)


def test_what_is_being_made_is_not_listed_and_left_alone(home: Path) -> None:
    """Half a snapshot has no name; a sweep leaves it as long as somebody works on it."""
    with snapshots.building() as directory:
        snapshots.write_file(directory, snapshots.STATE, b"half")
        assert snapshots.names() == []
        snapshots.sweep()
        assert os.listdir(directory) == [snapshots.STATE]
    assert list(home.iterdir()) == []


def test_without_a_hidden_name_half_a_snapshot_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: made under a name that anybody sees, it is there before it is whole."""
    monkeypatch.setattr(snapshots, "_HIDDEN", "visible-")
    with snapshots.building() as directory:
        monkeypatch.undo()
        monkeypatch.setenv("XDG_DATA_HOME", str(Path(directory).parents[2]))
        snapshots.write_file(directory, snapshots.STATE, b"half")
        assert snapshots.names() == [Path(directory).name]


def test_what_a_killed_one_has_left_is_swept(home: Path) -> None:
    """Without its maker's lock half a snapshot is removed by the next one who makes one."""
    make("whole")
    left = home / ".new-left"
    left.mkdir(mode=0o700)
    (left / snapshots.MEMORY).write_bytes(b"half")
    held = os.open(left, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    make("second")
    assert left.exists()
    os.close(held)
    make("third")
    assert not left.exists()
    assert snapshots.names() == ["second", "third", "whole"]


def test_a_link_in_a_snapshots_place_goes_and_nothing_behind_it(home: Path, tmp_path: Path) -> None:
    """Whoever deletes what somebody has put there loses no file of another directory."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("kept")
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    (home / "link").symlink_to(elsewhere)
    snapshots.delete("link")
    assert (elsewhere / "precious").read_text() == "kept"
    assert list(home.iterdir()) == []


def test_a_name_is_never_taken_twice(home: Path) -> None:
    """Whoever comes second is told, also when the name was free a moment ago."""
    make("one", "first")
    with pytest.raises(SnapshotError, match="there is a snapshot one already"):
        make("one", "second")
    assert snapshots.read_info(snapshots.locate("one")) == "first"
    assert [path.name for path in home.iterdir()] == ["one"]


def test_what_others_can_write_to_is_not_used(home: Path) -> None:
    """A directory or a file that another user can write to is no snapshot; nor is a link."""
    make("one")
    directory = home / "one"
    for path in (directory, directory / snapshots.MEMORY, home):
        mode = path.stat().st_mode
        path.chmod(mode | 0o020)
        with pytest.raises(SnapshotError, match="others can write to it"):
            snapshots.locate("one")
        path.chmod(mode)
    snapshots.locate("one")
    (directory / snapshots.MEMORY).unlink()
    (directory / snapshots.MEMORY).symlink_to("/dev/zero")
    with pytest.raises(SnapshotError, match="not yours"):
        snapshots.locate("one")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_is_anothers_is_not_used(home: Path) -> None:
    """Root, too, uses only what is root's."""
    make("one")
    os.chown(home / "one" / snapshots.MEMORY, 1, 1)
    with pytest.raises(SnapshotError, match="not yours"):
        snapshots.locate("one")


def test_a_damaged_description_is_refused(home: Path) -> None:
    """Every change of one bit is found; another version is named."""
    make("one", '{"words": "some"}')
    path = home / "one" / snapshots.INFO
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(SnapshotError):
            snapshots.read_info(str(home / "one"))
    path.write_bytes(whole[:-1])
    with pytest.raises(SnapshotError, match="checksum"):
        snapshots.read_info(str(home / "one"))
    path.write_bytes(whole.replace(b"cloche-snapshot 2 ", b"cloche-snapshot 3 "))
    with pytest.raises(SnapshotError, match="another version"):
        snapshots.read_info(str(home / "one"))


def test_memory_is_copied_without_what_is_empty(tmp_path: Path) -> None:
    """Holes and zero pages take no room, everything else is there, and the checksum is that of the copy."""
    parts = [b"a" * PAGE, bytes(PAGE), b"b" + bytes(PAGE - 1), bytes(3 * PAGE), b"c" * 100]
    with open(tmp_path / "source", "w+b") as source, open(tmp_path / "copy", "w+b") as copy:
        source.write(b"".join(parts))
        source.truncate(8 << 20)
        source.flush()
        used, checksum = run_through(copy_memory(source.fileno(), copy.fileno(), thrifty=True))
        assert (tmp_path / "copy").read_bytes() == (tmp_path / "source").read_bytes()
        assert used == 3 * PAGE
        assert (used, checksum) == checksum_memory(copy.fileno())
        assert os.fstat(copy.fileno()).st_blocks * 512 < 8 * PAGE
    with open(tmp_path / "source", "rb") as source, open(tmp_path / "other", "w+b") as other:
        run_through(copy_memory(source.fileno(), other.fileno(), thrifty=False))
        assert (tmp_path / "other").read_bytes() == (tmp_path / "source").read_bytes()


def test_a_file_is_copied_with_its_holes(tmp_path: Path) -> None:
    """A disk's image is the same afterwards, and as thin."""
    with open(tmp_path / "source", "w+b") as source, open(tmp_path / "copy", "w+b") as copy:
        source.write(os.urandom(5 << 20))
        source.truncate(64 << 20)
        source.flush()
        run_through(copy_file(source.fileno(), copy.fileno()))
        assert (tmp_path / "copy").read_bytes() == (tmp_path / "source").read_bytes()
        assert os.fstat(copy.fileno()).st_blocks * 512 <= 6 << 20


def test_a_link_in_a_templates_place_goes_and_nothing_behind_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The oldest of many templates are removed without anybody's asking: never files of another directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("kept")
    place = Path(templates.home())
    place.mkdir(mode=0o700, parents=True)
    (place / "link").symlink_to(elsewhere)
    assert templates.remove("link")
    assert (elsewhere / "precious").read_text() == "kept"
    assert list(place.iterdir()) == []
