"""The settings of a profile: the strongest file, an application of its own, edited and shown."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from support.homes import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Provide a home with a profile called job."""
    home = Home(tmp_path)
    kernels = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "cloche/kernels")
    (tmp_path / ".cache/cloche").mkdir(parents=True, mode=0o700)
    (tmp_path / ".cache/cloche/kernels").symlink_to(kernels)
    assert home("profile", "new", "job").returncode == 0
    return home


def _settings(home: Home, text: str) -> Path:
    path = home.path / ".local/share/cloche/profiles/job/cloche.toml"
    path.write_text(text)
    return path


def _plan(home: Home, *words: str) -> list[str]:
    done = home("run", "--dry-run", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def _argv(plan: list[str]) -> str:
    return plan[plan.index("command") + 1].split("argv", 1)[1].strip()


def _said(plan: list[str]) -> list[str]:
    return [line.split(None, 1)[1].partition(" (")[0] for line in plan if line.startswith("settings ")]


def test_a_list_shows_label_and_colour(home: Home) -> None:
    """What its owner calls a profile stands beside its name; settings that are wrong keep nobody from looking."""
    _settings(home, 'label = "Day job"\ncolour = "green"\n')
    assert home("profile", "list").stdout.endswith("  ready                 Day job\n")
    (row,) = json.loads(home("profile", "list", "--json").stdout)
    assert (row["label"], row["colour"]) == ("Day job", "#2e9e3f")
    _settings(home, "nonsense")
    assert home("profile", "list").stdout.endswith("  ready\n")


def test_a_profile_is_stronger_than_other_files(home: Home) -> None:
    """Its file replaces and adds to the user's and the system's, and `profile show` says whose each word is."""
    home.system.write_text('memory = "512M"\n')
    home.user.write_text('memory = "256M"\nenv = ["A=1"]\ncpus = 2\n')
    path = _settings(home, 'label = "Work"\nmemory = "768M"\n\n[env]\nB = "2"\n')
    rows = json.loads(home("profile", "show", "job", "--json").stdout)
    shown = {(row["key"], row["value"]): (row["level"], row["line"]) for row in rows}
    assert shown["memory", "768M"] == ("profile", 2)
    assert shown["env", "A=1"] == ("user", 2)
    assert shown["env", "B=2"] == ("profile", 5)
    assert shown["cpus", 2] == ("user", 3)
    assert shown["driver", "qemu"] == ("built-in", None)
    assert f'label = "Work"       # profile: {path}:1' in home("profile", "show", "job", "--origin").stdout
    assert "768" not in home("settings", "show").stdout


def test_a_profile_is_an_application(home: Home) -> None:
    """`cloche -p NAME` starts its command; words on the command line take the place of command and arguments."""
    assert "the profile job names none" in home("-p", "job").stderr
    _settings(home, 'command = "echo"\nargs = ["a b", "c"]\n')
    assert _argv(_plan(home, "-p", "job")) == "echo 'a b' c"
    assert _argv(_plan(home, "-p", "job", "true", "x")) == "true x"
    assert "no program was named" in home("run").stderr


@pytest.mark.parametrize(
    "line, words",
    [
        ('memory = "4000000M"', ("true",)),
        ("boot_log = true", ("-d", "true")),
        ('command = "no-such-program"', ()),
    ],
)
def test_an_error_names_the_line_that_has_led_to_it(home: Home, line: str, words: tuple[str, ...]) -> None:
    """What a file says and no machine can have, or not together with the command line, is told with its line."""
    path = _settings(home, f"\n{line}\n")
    done = home("run", "-p", "job", *words)
    assert done.returncode in (125, 127)
    assert f"\nhint: It is set in {path}:2." in done.stderr
    assert "It is set in" not in home("run", "-p", "job", "--memory", "4000000M", "true").stderr
    _settings(home, 'share = ["/usr/share"]\n')
    assert "It is set in" not in home("run", "-p", "job", "--share", "/none", "true").stderr


def test_which_profile_a_run_has(home: Home) -> None:
    """The named one, else the default one; -t and `temporary` mean none, but a name is stronger than a file's."""
    _settings(home, "cpus = 3\n")
    assert _said(_plan(home, "true")) == []
    assert _said(_plan(home, "-p", "job", "true")) == ["cpus = 3"]
    home.user.write_text('default_profile = "job"\n')
    assert _said(_plan(home, "true")) == ['default_profile = "job"', "cpus = 3"]
    assert _said(_plan(home, "-t", "true")) == ['default_profile = "job"']
    home.user.write_text("temporary = true\n")
    assert _said(_plan(home, "true")) == ["temporary = true"]
    assert _said(_plan(home, "-p", "job", "true")) == ["cpus = 3", "temporary = true"]
    assert (
        "cannot" in home("run", "-p", "job", "-t", "true").stderr
        or "Give one of them" in home("run", "-p", "job", "-t", "true").stderr
    )
    home.user.write_text('default_profile = "job"\n')
    # Of `-p "$NAME"` where NAME is nothing: neither none nor the default one is what was meant.
    assert "cannot be a profile's name" in home("run", "--dry-run", "-p", "", "true").stderr
    home.user.write_text('default_profile = "gone"\n')
    assert f"\nhint: It is set in {home.user}:1. " in home("run", "--dry-run", "true").stderr


@pytest.mark.parametrize(
    "text, message",
    [
        ("memroy = 1\n", "there is no setting"),
        ("temporary = true\n", "cannot be set here"),
        ("a = [", "invalid"),
    ],
)
def test_wrong_settings_of_a_profile_end_its_runs_and_no_others(home: Home, text: str, message: str) -> None:
    """What is wrong in a profile concerns its runs alone, and `settings check FILE` knows whose file it is."""
    path = _settings(home, text)
    done = home("run", "--dry-run", "-p", "job", "true")
    assert (done.returncode, done.stderr.startswith(f"cloche: {path}:1:"), message in done.stderr) == (
        125,
        True,
        True,
    )
    assert home("run", "--dry-run", "true").returncode == 0
    checked = home("settings", "check", str(path))
    assert checked.returncode == 125
    assert message in checked.stdout
    path.chmod(0o666)
    assert "others than you can write" in home("profile", "show", "job").stderr


def test_a_profile_is_edited(home: Home) -> None:
    """The first time everything is there, commented out; what is wrong is not taken; another profile is not touched."""
    script = home.path / "editor.py"
    script.write_text(
        "import sys\ntext = open(sys.argv[1]).read()\nassert '#command = ' in text\n"
        "open(sys.argv[1], 'w').write(text.replace('#cpus', 'cpus'))\n"
    )
    editor = f"{sys.executable} {script}"
    assert home("profile", "edit", "job", EDITOR=editor).stderr == ""
    assert "cpus = 2\n" in home("profile", "show", "job").stdout
    script.write_text("import sys\nopen(sys.argv[1], 'w').write('default_profile = \"x\"')\n")
    done = home("profile", "edit", "job", EDITOR=editor)
    assert "default_profile cannot be set here" in done.stderr
    assert "cpus = 2\n" in home("profile", "show", "job").stdout
    for words in (("edit", "none"), ("show", "none"), ("edit", "../job"), ("show",), ("edit", "a", "b")):
        assert home("profile", *words, EDITOR=editor).returncode == 125
