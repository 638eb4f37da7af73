"""Going back to a start: which can be gone back to, and that a disk is the old one or the new one whatever happens."""

from __future__ import annotations

import os
import random
import resource
import signal
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloche.errors import ProfileError
from cloche.host import reverting, undo, undolog
from support.undo import SIZE, Profile

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    """Return a profile of which nobody has started anything."""
    return Profile(tmp_path)


def problems(profile: Profile) -> list[str]:
    """Return why one cannot go back to each start, the newest first."""
    return [start.problem for start in undo.starts(str(profile.path))]


def test_a_disk_goes_back_to_any_start_that_is_kept(profile: Profile) -> None:
    """Each start leads to what was there before it, and forgets those after it."""
    held = [profile.run(seed) for seed in range(4)]
    assert problems(profile) == [""] * 4
    assert profile.revert(3).number == 3
    assert profile.content() == held[2]
    assert [start.number for start in undo.starts(str(profile.path))] == [2, 1]
    assert profile.revert(1).number == 1
    assert profile.content() == held[0]
    with pytest.raises(ProfileError, match="nothing is kept of any start"):
        profile.revert()


def test_only_the_last_starts_and_only_so_many_bytes_are_kept(profile: Profile) -> None:
    """The oldest go, and a new one has half of the room at least."""
    for seed in range(6):
        profile.run(seed, keep=3)
    assert [start.number for start in undo.starts(str(profile.path))] == [6, 5, 4]
    total = sum(start.used_bytes for start in undo.starts(str(profile.path)))
    begun = undo.begin(str(profile.path), SIZE, 9, total)
    assert begun is not None
    assert begun.most_bytes >= total // 2
    assert len(undo.starts(str(profile.path))) < 4


def test_a_start_that_fails_for_want_of_room_takes_none_away(profile: Profile) -> None:
    """Whoever cannot write leaves no half of a log, behind which those before it could not be gone back to."""
    profile.run(1)
    held = profile.run(2)
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8, 8))
        try:
            undo.begin(str(profile.path), SIZE)
        except ProfileError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert problems(profile) == ["", ""]
    profile.revert()
    assert profile.content() == held


def test_a_run_without_a_log_leaves_none_before_it(profile: Profile) -> None:
    """What was changed without one could not be taken back."""
    profile.run(1)
    assert undo.begin(str(profile.path), SIZE, 0) is None
    assert undo.starts(str(profile.path)) == []


def test_a_log_that_was_given_up_keeps_nothing_before_it(profile: Profile) -> None:
    """Neither that start nor one before it can be gone back to, both say why, and the next start drops them."""
    profile.run(1)
    profile.run(2, most=32 << 10)
    assert problems(profile) == ["more was changed than is kept", "start 2 after it cannot be taken back"]
    with pytest.raises(
        ProfileError, match="cannot go back to start 1: start 2 after it cannot be taken back"
    ):
        profile.revert(1)
    held = profile.run(3)
    assert [start.number for start in undo.starts(str(profile.path))] == [3]
    profile.revert()
    assert profile.content() == held


def test_a_start_before_a_loss_of_power_is_known_as_such(profile: Profile) -> None:
    """A log that nobody has sealed before the host began anew is not used; one that was is."""
    held = profile.run(1)
    profile.run(2, seal=False)
    profile.change_boot(2, bytes(16))
    assert problems(profile)[0].startswith("the host lost power")
    assert problems(profile)[1] == "start 2 after it cannot be taken back"
    with pytest.raises(ProfileError, match="the host lost power"):
        profile.revert(2)
    os.unlink(profile.path / "undo" / "00000002")
    profile.change_boot(1, bytes(16))
    # As if the second had never been: the first was sealed.
    profile.image.write_bytes(profile.after[0])
    profile.revert(1)
    assert profile.content() == held


def test_a_start_that_is_missing_is_noticed(profile: Profile) -> None:
    """Without the log of a start in between, those before it cannot be gone back to."""
    for seed in range(3):
        profile.run(seed)
    os.unlink(profile.path / "undo" / "00000002")
    assert problems(profile) == ["", "start 2 after it is not kept"]


def test_a_log_of_another_version_is_refused(profile: Profile) -> None:
    """It says so, and the disk is as it was."""
    profile.run(1)
    before = profile.content()
    path = profile.path / "undo" / "00000001"
    data = bytearray(path.read_bytes())
    data[8] = 2
    body = bytes(data[: undolog.HEADER - 4])
    path.write_bytes(body + zlib.crc32(body).to_bytes(4, "little") + data[undolog.HEADER :])
    with pytest.raises(ProfileError, match="another version of cloche"):
        profile.revert()
    assert profile.content() == before


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_what_is_damaged_is_refused_and_changes_nothing(
    profile: Profile, place: float, bit: int, *, cut: bool
) -> None:
    """One bit that is wrong anywhere in a log, or an end that is missing, is found before the disk is touched."""
    if not profile.after:
        profile.run(1)
    path = profile.path / "undo" / "00000001"
    whole = path.read_bytes()
    data = bytearray(whole)
    at = int(place * len(data))
    if cut:
        del data[at:]
    else:
        data[at] ^= 1 << bit
    path.write_bytes(data)
    try:
        with pytest.raises(ProfileError, match=r"cannot go back to start 1"):
            profile.revert(1)
    finally:
        path.write_bytes(whole)
    assert profile.content() == profile.after[0]


def kill_in_revert(profile: Profile, number: int, *, marks: bool) -> None:
    """Have a process go back that dies at its ``number``th step."""
    pid = os.fork()
    if pid == 0:
        left = number

        def step(*unused: object) -> None:
            nonlocal left
            del unused
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        for name in ("_restore", "_mark", "sync", "_clear"):
            act = getattr(reverting, name)

            def stepping(*words: object, act: object = act, name: str = name) -> None:
                step()
                if marks or name != "_mark":
                    act(*words)  # type: ignore[operator]
                step()

            setattr(reverting, name, stepping)
        try:
            profile.revert(1)
        finally:
            os._exit(1)
    os.waitpid(pid, 0)


@pytest.mark.parametrize("marks", [True, False], ids=["as it is", "without the marker"])
def test_a_revert_that_is_killed_leaves_the_old_or_the_new(profile: Profile, *, marks: bool) -> None:
    """Wherever it is killed, the next one finishes what was begun; without the marker a half would stay."""
    old = profile.run(1)
    profile.run(2)
    new = profile.content()
    logs = {path.name: path.read_bytes() for path in (profile.path / "undo").iterdir()}
    seen = set()
    for number in range(60):
        profile.image.write_bytes(new)
        for name, data in logs.items():
            (profile.path / "undo" / name).write_bytes(data)
        kill_in_revert(profile, number, marks=marks)
        reverting.finish(str(profile.path), str(profile.image))
        left = profile.content()
        seen.add("old" if left == old else "new" if left == new else "half")
        assert (profile.path / "undo" / "reverting").exists() is False
    assert seen == ({"old", "new"} if marks else {"old", "new", "half"})


@pytest.mark.parametrize("checks", [True, False], ids=["as it is", "without checksums"])
def test_a_log_that_a_loss_of_power_has_torn_is_refused(
    profile: Profile, monkeypatch: pytest.MonkeyPatch, *, checks: bool
) -> None:
    """Pages of a sealed log that never reached the disk are noticed; who does not look puts nonsense on the disk."""
    old = profile.run(1)
    new = profile.content()
    path = profile.path / "undo" / "00000001"
    whole = path.read_bytes()
    pick = random.Random(7)
    seen = set()
    if not checks:
        monkeypatch.setattr(
            reverting, "records", lambda fd, header, end, whole: profile.trusting(fd, header, end)
        )
    for _ in range(20):
        data = bytearray(whole)
        # The header's own page is there, else there is no log.
        for page in range(4096, len(data), 4096):
            if pick.random() < 0.2:
                data[page : page + 4096] = bytes(len(data[page : page + 4096]))
        path.write_bytes(data)
        profile.image.write_bytes(new)
        try:
            profile.revert(1)
        except ProfileError:
            seen.add("refused")
            assert profile.content() == new
            (profile.path / "undo" / "reverting").unlink(missing_ok=True)
        else:
            seen.add("old" if profile.content() == old else "nonsense")
        path.write_bytes(whole)
    assert ("nonsense" in seen) is not checks
    assert not checks or "refused" in seen
