"""Where cloche keeps its files: whose directories are used, and whose are not."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from cloche.errors import HostError
from cloche.host import memory, xdg

if TYPE_CHECKING:
    from pathlib import Path

    from support.users import OrdinaryUser


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Provide an empty home, and no XDG variable."""
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def mode(path: str | Path) -> int:
    """Return the permission bits of a path."""
    return stat.S_IMODE(os.stat(path).st_mode)


def test_defaults_are_below_the_home(home: Path) -> None:
    """Without variables, the directories the specification names are used, and not made by asking."""
    assert xdg.cache_dir() == f"{home}/.cache/cloche"
    assert xdg.data_dir() == f"{home}/.local/share/cloche"
    assert list(home.iterdir()) == []


def test_variables_are_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An absolute path in a variable replaces the default."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert (xdg.cache_dir(), xdg.data_dir()) == ("/cache/cloche", "/data/cloche")


@pytest.mark.parametrize("value", ["", "relative", "./here", "~/x"])
def test_relative_variables_are_ignored(home: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """The specification wants a relative path ignored."""
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, value)
    assert xdg.cache_dir() == f"{home}/.cache/cloche"
    assert xdg.data_dir() == f"{home}/.local/share/cloche"
    assert xdg.runtime_dir().startswith("/")


def test_a_relative_home_is_ignored(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Without a usable HOME the user database says where the home is."""
    for value in ("", "relative"):
        monkeypatch.setenv("HOME", value)
        assert xdg.cache_dir().startswith("/")
        assert not xdg.cache_dir().startswith(str(home))


def test_the_runtime_directory_is_private(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG_RUNTIME_DIR is used only while it belongs to the caller and nobody else can write to it."""
    place = home / "runtime"
    place.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))
    assert xdg.runtime_dir() == f"{place}/cloche"
    for open_to_others in (0o770, 0o702, 0o777):
        place.chmod(open_to_others)
        assert not xdg.runtime_dir().startswith(str(place))
    place.chmod(0o755)
    assert xdg.runtime_dir() == f"{place}/cloche"


def test_directories_are_made_for_the_owner_alone(home: Path) -> None:
    """A missing directory and its missing parents are made 0700, whatever the caller's mask."""
    before = os.umask(0)
    try:
        made = xdg.ensure_directory(f"{home}/a/b/c")
    finally:
        os.umask(before)
    assert made == f"{home}/a/b/c"
    assert {mode(home / part) for part in ("a", "a/b", "a/b/c")} == {0o700}


def test_what_exists_is_left_as_it_is(home: Path) -> None:
    """A directory that is there keeps its mode."""
    (home / "a").mkdir(mode=0o755)
    assert xdg.ensure_directory(f"{home}/a") == f"{home}/a"
    assert mode(home / "a") == 0o755


def test_directories_others_can_write_to_are_refused(home: Path) -> None:
    """A directory that somebody else could fill is not trusted, and the hint says how to close it."""
    place = home / "a"
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(HostError, match="not yours alone") as caught:
        xdg.ensure_directory(str(place))
    assert "chmod go-w" in str(caught.value.hint)


@pytest.mark.parametrize("make", ["file", "below a file", "dangling link", "loop"])
def test_what_cannot_be_a_directory(home: Path, make: str) -> None:
    """A file or broken link in the way is one sentence with the path, the reason and a hint."""
    place = home / "a"
    if make == "dangling link":
        place.symlink_to(home / "nowhere")
    elif make == "loop":
        place.symlink_to(place)
    else:
        place.write_text("")
    path = str(place / "b") if make == "below a file" else str(place)
    with pytest.raises(HostError) as caught:
        xdg.ensure_directory(path)
    assert path in caught.value.message
    assert "XDG_CACHE_HOME" in str(caught.value.hint)


def test_a_link_to_ones_own_directory_is_fine(home: Path) -> None:
    """Whoever moved the cache to another disk by a link goes on using it."""
    (home / "disk").mkdir()
    (home / "cache").symlink_to(home / "disk")
    assert xdg.ensure_directory(f"{home}/cache/x") == f"{home}/cache/x"
    assert (home / "disk/x").is_dir()


PROGRAM = """
import sys; sys.path.insert(0, sys.argv[1])
from cloche.errors import HostError
from cloche.host import xdg
print(xdg.runtime_dir())
try:
    print(xdg.ensure_directory(sys.argv[2]))
except HostError as error:
    print("refused:", error.message)
"""


def as_user(user: OrdinaryUser, path: str, **env: str) -> list[str]:
    """Return what an ordinary user is told: the runtime directory, and what comes of wanting ``path``."""
    argv = ["/usr/bin/python3", "-IS", "-c", PROGRAM, str(user.project / "src"), path]
    return user.run(argv, env=env, check=True).stdout.decode().splitlines()


def test_somebody_elses_directories_are_refused(ordinary: OrdinaryUser) -> None:
    """A directory of another user is neither used as the runtime directory nor trusted as any other."""
    runtime, answer = as_user(ordinary, "/etc", XDG_RUNTIME_DIR="/etc")
    assert not runtime.startswith("/etc")
    assert answer.startswith("refused: the directory /etc is not yours alone")


def test_directories_that_cannot_be_made(ordinary: OrdinaryUser) -> None:
    """Where the caller may not write, the reason is told."""
    _, answer = as_user(ordinary, "/etc/cloche/x")
    assert answer == "refused: cannot make the directory /etc/cloche/x: Permission denied"


def test_a_user_without_home(ordinary: OrdinaryUser) -> None:
    """A caller without HOME and without a line in the user database is told to set HOME."""
    program = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from cloche.errors import HostError\n"
        "from cloche.host import xdg\n"
        "if os.getuid() == 0: os.setresuid(54321, 54321, 54321)\n"
        "os.getuid = lambda: 54321\n"
        "del os.environ['HOME']\n"
        "try: xdg.cache_dir()\n"
        "except HostError as error: print(error.message, '|', error.hint)\n"
    )
    argv = ["/usr/bin/python3", "-IS", "-c", program, str(ordinary.project / "src")]
    told = ordinary.run(argv, check=True).stdout.decode()
    assert told == "no home directory is known for this user | Set HOME to a directory of yours.\n"


def test_what_was_said_is_remembered(home: Path) -> None:
    """A line is new once; another line is new for itself."""
    assert [memory.first_time(line) for line in ("a", "a", "b", "a\udcff", "b")] == [
        True,
        False,
        True,
        True,
        False,
    ]


def test_without_a_cache_everything_is_new(home: Path) -> None:
    """When nothing can be remembered, saying it again is better than failing."""
    (home / ".cache").write_text("")
    assert [memory.first_time("a") for _ in range(2)] == [True, True]
