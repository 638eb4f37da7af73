"""The store of profiles: nothing half-made is ever there, and nobody has one twice."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from threading import Event, Thread

import pytest

from cloche.domain.profile_verbs import reset
from cloche.errors import MissingToolError, ProfileError, UsageError
from cloche.host import profile_lock, profiles, undo
from cloche.host.profile_lock import BusyError, Hold, forget_other_host, is_held, read_note
from cloche.host.profile_place import exists
from support.users import ROOT


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test profiles of its own."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path / "cloche" / "profiles"


def elsewhere(script: str) -> subprocess.Popen[bytes]:
    """Start another process that does something with the profiles, says a line and waits."""
    program = f"import sys\nsys.path.insert(0, {str(ROOT / 'src')!r})\n" + textwrap.dedent(script)
    return subprocess.Popen(
        [sys.executable, "-c", program + "\nprint('done', flush=True)\nsys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def test_a_profile_appears_whole_and_goes(home: Path) -> None:
    """It is private, its disk sparse and an ext4 with nothing in it; deleted, nothing is left."""
    profiles.new("one")
    assert profiles.names() == ["one"]
    image = Path(profiles.image("one"))
    assert image.parent.stat().st_mode & 0o777 == 0o700
    assert image.stat().st_mode & 0o777 == 0o600
    assert image.stat().st_size == 20 << 30
    assert image.stat().st_blocks * 512 < 16 << 20
    # The file system of nobody: a test may look into it.
    subprocess.run(["e2fsck", "-fn", str(image)], check=True, capture_output=True)
    with pytest.raises(ProfileError, match="there is a profile one already"):
        profiles.new("one")
    profiles.delete("one")
    assert list(home.iterdir()) == []
    with pytest.raises(ProfileError, match="you have no profile one"):
        profiles.image("one")


@pytest.mark.parametrize("name", ["", "..", "a/b", ".new-1", "a\nb", "-x", "é", "x" * 64])
def test_no_name_leaves_the_directory(name: str) -> None:
    """What cannot be a name is refused wherever a name is taken, and is nobody's program either."""
    for use in (profiles.new, profiles.directory, Hold.take):
        with pytest.raises(UsageError, match="cannot be a profile's name"):
            use(name)
    profiles.new("one", 64 << 20)
    with pytest.raises(UsageError, match="cannot be a profile's name"):
        profiles.rename("one", name)
    assert not exists(name)


def test_a_profile_that_cannot_be_made_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A size no disk has, a tool that is missing, a tool that fails."""
    for size in (4096, 1 << 50):
        with pytest.raises(UsageError, match="64M to 16T"):
            profiles.new("one", size)
    with monkeypatch.context() as patch:
        patch.setattr("cloche.host.tools.find_system_tool", lambda name: "")
        with pytest.raises(MissingToolError, match=r"mkfs\.ext4"):
            profiles.new("one")
    with monkeypatch.context() as patch:
        patch.setattr("cloche.host.tools.find_system_tool", lambda name: "/bin/false")
        with pytest.raises(ProfileError) as caught:
            profiles.new("one")
        assert "XDG_DATA_HOME" in (caught.value.hint or "")
    assert not home.exists() or list(home.iterdir()) == []


def test_a_reset_without_room_keeps_the_starts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier starts can be gone back to until the new disk is whole."""
    profiles.new("one", 64 << 20)
    begun = undo.begin(str(home / "one"), 64 << 20, 5, 1 << 30, (b"true",))
    assert begun is not None
    kept = sorted(path.name for path in (home / "one" / "undo").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr("cloche.host.tools.find_system_tool", lambda name: "/bin/false")
        with pytest.raises(ProfileError):
            reset("one")
    assert kept
    assert sorted(path.name for path in (home / "one" / "undo").iterdir()) == kept
    reset("one")
    assert not os.path.exists(begun.path)


def test_what_a_killed_maker_has_left_is_swept(home: Path) -> None:
    """Half a profile is nobody's profile, is left alone while it is made, and removed when its maker was killed."""
    maker = elsewhere(
        """
        from cloche.host import profiles
        place = profiles.building()
        path = place.__enter__()
        open(path + "/disk.img", "w").close()
        """
    )
    assert maker.stdout is not None
    maker.stdout.readline()
    assert profiles.names() == []
    profiles.sweep()
    assert len(list(home.iterdir())) == 1
    maker.kill()
    maker.communicate()
    profiles.sweep()
    assert list(home.iterdir()) == []


def test_others_profiles_are_not_taken(home: Path) -> None:
    """A directory that somebody else can write to is refused with what mends it."""
    profiles.new("one", 64 << 20)
    (home / "one").chmod(0o777)
    with pytest.raises(ProfileError, match="not yours alone"):
        Hold.take("one")


def test_what_is_noted_is_waited_for_before_the_disk_is_used(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host's disk is asked for it while the machine comes up; who waits returns when it has answered."""
    profiles.new("one", 64 << 20)
    answers, asked = Event(), Event()

    def slow(fd: int) -> None:
        assert os.fstat(fd).st_ino == (home / "one" / "lock").stat().st_ino
        asked.set()
        answers.wait()

    hold = Hold.take("one")
    hold.begin(())
    monkeypatch.setattr(os, "fdatasync", slow)
    hold.began("0123456789ab")
    asked.wait()
    over = Thread(target=hold.secured)
    over.start()
    assert over.is_alive()
    answers.set()
    over.join()
    hold.release(is_clean=True)


def test_a_disk_that_refuses_what_is_noted_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits hears of it; without waiting nobody would, and the run would go on."""
    profiles.new("one", 64 << 20)

    def refuse(fd: int) -> None:
        raise OSError(5, "Input/output error")

    hold = Hold.take("one")
    hold.begin(())
    monkeypatch.setattr(os, "fdatasync", refuse)
    hold.began("0123456789ab")
    with pytest.raises(ProfileError, match="cannot write to the profile one: Input/output error"):
        hold.secured()
    hold.release()


def test_a_profile_is_held_once(home: Path) -> None:
    """Who has it keeps everybody else out, whatever process that is, until it is released or its holder was killed."""
    profiles.new("one", 64 << 20)
    other = elsewhere(
        """
        from cloche.host.profile_lock import Hold
        hold = Hold.take("one")
        hold.begin(("memory_mib 512",))
        hold.began("0123456789ab")
        """
    )
    assert other.stdout is not None
    other.stdout.readline()
    with pytest.raises(BusyError, match="in use by the domain 0123456789ab") as caught:
        Hold.take("one")
    assert caught.value.note is not None
    assert caught.value.note.machine == ("memory_mib 512",)
    assert caught.value.note.pid == other.pid
    assert profile_lock.is_held("one")
    other.send_signal(signal.SIGKILL)
    other.communicate()
    hold = Hold.take("one")
    assert not hold.is_clean
    hold.begin(())
    hold.release(is_clean=True)
    hold = Hold.take("one")
    assert hold.is_clean
    # Taken and not used it stays clean.
    hold.release()
    assert Hold.take("one").is_clean


def test_whoever_asks_is_in_nobodys_way() -> None:
    """Profiles are listed all the time; nobody who wants one at that moment is told that it is in use."""
    profiles.new("one", 64 << 20)
    script = """
        from cloche.host.profile_lock import is_held
        print(is_held('one'), flush=True)
        while True:
            is_held('one')
    """
    with elsewhere(script) as asking:
        try:
            assert asking.stdout is not None
            assert asking.stdout.readline() == b"False\n"
            for _ in range(2000):
                Hold.take("one").release()
        finally:
            asking.kill()


def test_a_lock_that_is_no_file_is_named(home: Path) -> None:
    """A FIFO where the lock should be is told of, whoever asks."""
    profiles.new("odd")
    path = home / "odd" / "lock"
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    for ask in (Hold.take, is_held, read_note, forget_other_host):
        with pytest.raises(ProfileError, match="lock: it is no file"):
            ask("odd")


def test_a_hold_that_locks_nothing_is_taken_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: without the lock two have the profile at the same time."""
    profiles.new("one", 64 << 20)
    monkeypatch.setattr("cloche.host.profile_lock.fcntl.fcntl", lambda *words: None)
    first, second = Hold.take("one"), Hold.take("one")
    assert first.is_clean
    assert second.is_clean


def test_a_forked_child_does_not_keep_a_profile(home: Path) -> None:
    """A program of the API may have forked: what it releases is free."""
    profiles.new("one", 64 << 20)
    hold = Hold.take("one")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    hold.release()
    Hold.take("one").release()
    os.close(write)
    os.waitpid(child, 0)


def test_another_host_is_not_robbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another host has noted stands until its owner says that it is over; the disk is then checked."""
    profiles.new("one", 64 << 20)
    with monkeypatch.context() as patch:
        patch.setattr(profile_lock, "this_host", lambda: ("otherhost-00000000", "boot"))
        hold = Hold.take("one")
        hold.begin(())
        hold.release()
    with pytest.raises(ProfileError, match="in use on the host otherhost"):
        Hold.take("one")
    profile_lock.forget_other_host("one")
    hold = Hold.take("one")
    assert not hold.is_clean


def test_the_image_is_waited_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes of a domain that has just ended have the image open a moment longer; but not for ever."""
    profiles.new("one", 64 << 20)
    other = elsewhere(
        f"""
        import fcntl
        file = open({str(home / "one" / "disk.img")!r})
        fcntl.flock(file, fcntl.LOCK_EX)
        """
    )
    assert other.stdout is not None
    other.stdout.readline()
    with monkeypatch.context() as patch:
        patch.setattr(profile_lock, "_LETTING_GO_S", 0)
        with pytest.raises(BusyError):
            Hold.take("one")

    flock = fcntl.flock

    def let_go(fd: int, how: int) -> None:
        if not how & fcntl.LOCK_NB:
            other.kill()
        flock(fd, how)

    monkeypatch.setattr("cloche.host.profile_lock.fcntl.flock", let_go)
    Hold.take("one").release()
    other.communicate()


def test_renamed_it_is_the_same() -> None:
    """A new name, the same disk; a name that is taken is not taken over."""
    profiles.new("one", 64 << 20)
    profiles.new("two", 64 << 20)
    number = Path(profiles.image("one")).stat().st_ino
    with pytest.raises(ProfileError, match="there is a profile two already"):
        profiles.rename("one", "two")
    profiles.rename("one", "three")
    assert Path(profiles.image("three")).stat().st_ino == number
    assert profiles.names() == ["three", "two"]


@pytest.mark.parametrize(
    "verb, place, left",
    [
        ("clone('one', 'two')", "profile_verbs.copy_file", ["one"]),
        ("reset('one')", "profiles.sync", ["one"]),
        ("delete('one')", "profiles.remove_tree", []),
    ],
)
def test_killed_in_the_middle_it_is_the_old_or_the_new(
    home: Path, verb: str, place: str, left: list[str]
) -> None:
    """What was begun is not half there: the profile is as before, or gone, and the next command clears what is left."""
    profiles.new("one", 64 << 20)
    number = Path(profiles.image("one")).stat().st_ino
    other = elsewhere(
        f"""
        from cloche.domain import profile_verbs
        from cloche.host import profiles
        def wait(*words):
            print("done", flush=True)
            sys.stdin.read()
        {place} = wait
        profile_verbs.{verb}
        """
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"done\n"
    other.kill()
    other.communicate()
    assert profiles.names() == left
    assert len(list(home.iterdir())) > len(left)
    for name in left:
        assert Path(profiles.image(name)).stat().st_ino == number
        hold = Hold.take(name)
        assert hold.is_clean
        hold.release()
    profiles.new("two", 64 << 20)
    assert sorted(path.name for path in home.iterdir()) == sorted([*left, "two"])
