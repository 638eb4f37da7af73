"""Names of domains: one holder each, whoever dies, and however many want it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cloche.errors import DomainError, UsageError
from cloche.host import names, rundir
from cloche.host.rundir import RunDirectory

SOURCE = Path(__file__).resolve().parents[2] / "src"
#: Makes a run directory with a name, says so, and waits to be ended.
HOLDER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from cloche.errors import DomainError
from cloche.host.rundir import RunDirectory
try:
    made = RunDirectory.create("web")
    made.record_warden(os.getpid())
    print(made.ident, flush=True)
except DomainError as error:
    print("taken", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep everything in a directory of the test's own."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "cloche"


def holder() -> subprocess.Popen[bytes]:
    """Start a process that wants the name."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(SOURCE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def test_of_many_who_want_a_name_at_once_one_gets_it(runtime: Path) -> None:
    """The others are told; and the name leads to the one who has it."""
    crowd = [holder() for _ in range(12)]
    said = [one.stdout.readline().decode().strip() for one in crowd if one.stdout]
    (winner,) = [word for word in said if word != "taken"]
    assert next(one for one in rundir.find_running() if one.name == "web").ident == winner
    for one in crowd:
        one.communicate()
    assert rundir.sweep() >= 1
    assert os.listdir(runtime) == ["@"]


def test_the_name_of_one_that_was_killed_is_free(runtime: Path) -> None:
    """It can be taken at once, without anybody having cleaned up; and the dead one's is not given back twice."""
    dead = holder()
    assert dead.stdout is not None
    ident = dead.stdout.readline().decode().strip()
    dead.send_signal(signal.SIGKILL)
    dead.communicate()
    assert (runtime / "@web").readlink() == Path(ident)
    mine = RunDirectory.create("web")
    assert (runtime / "@web").readlink() == Path(mine.ident)
    rundir.sweep()
    assert (runtime / "@web").readlink() == Path(mine.ident)
    mine.close()
    assert os.listdir(runtime) == ["@"]


def test_a_name_changes_and_comes_back() -> None:
    """The new one is refused while it is somebody's, and the old one is free after the change."""
    first, second = RunDirectory.create("one"), RunDirectory.create("two")
    with pytest.raises(DomainError, match="is called two already"):
        first.rename("two")
    assert first.name == "one"
    first.rename("three")
    first.rename("three")
    second.rename("one")
    first.close()
    third = RunDirectory.create("three")
    for directory in (second, third):
        directory.close()


@pytest.mark.parametrize("word", ["", ".x", "-x", "a/b", "a b", "é", "x" * 64, "0123456789ab", "a\n"])
def test_what_cannot_be_a_name_is_refused(word: str) -> None:
    """A path, an option, an identity, or what a terminal would not show."""
    with pytest.raises(UsageError):
        names.check_name(word)


def test_a_word_that_is_too_long_is_told_in_part() -> None:
    """The error stays a sentence."""
    with pytest.raises(UsageError) as raised:
        names.check_name("a" * 100_000, "snapshot")
    assert raised.value.message.endswith("aaa...' cannot be a snapshot's name")
    assert len(raised.value.message) < 200


@pytest.mark.parametrize("word", ["a", "web-1", "A.b_c", "x" * 63, "0123456789abc"])
def test_what_can_be_a_name(word: str) -> None:
    """Letters, digits and a few signs."""
    assert names.check_name(word) == word
