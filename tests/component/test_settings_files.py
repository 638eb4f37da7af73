"""cloche.toml as a user meets it: found, trusted, read, told, edited. Real files and the real command line."""

from __future__ import annotations

import json
import os
import pty
import pwd
import sys
from typing import TYPE_CHECKING

import pytest

from cloche.errors import SettingsError
from cloche.host import settings_cache, settings_files
from cloche.model.options import Level
from cloche.model.settings import Entry
from support.homes import CLOCHE, Home
from support.pty import TerminalProgram
from support.users import OrdinaryUser

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Provide a home without settings."""
    return Home(tmp_path)


def test_without_files_nothing_is_set(home: Home) -> None:
    """Nobody has said anything: the files are not there, and what holds is built in."""
    assert home.show() == {}
    paths = json.loads(home("settings", "path", "--json").stdout)
    assert [(row["level"], row["exists"]) for row in paths] == [
        ("system", False),
        ("system", False),
        ("user", False),
    ]
    assert [row["path"] for row in paths] == ["/etc/cloche/cloche.toml", str(home.system), str(home.user)]
    assert home("settings", "check").returncode == 0


def test_layers_and_origins(home: Home) -> None:
    """The user's file is stronger than the system's, and each word says where it was written."""
    home.system.write_text('memory = "512M"\nshare = ["/usr/share", "/usr/lib"]\n')
    home.user.write_text('# mine\nmemory = "256M"\n\n[[share]]\ndir = "/usr/lib"\nat = "/usr/share"\n')
    shown = home("settings", "show", "--origin")
    assert shown.stderr == ""
    lines = {line.split("#")[0].strip(): line.split("# ")[1] for line in shown.stdout.splitlines()}
    assert lines['memory = "256M"'] == f"user: {home.user}:2"
    assert lines['share = "/usr/lib"'] == f"system: {home.system}:2"
    assert lines['share = "/usr/lib:ro:at=/usr/share"'] == f"user: {home.user}:4"
    assert lines["cpus = 1"] == "built-in"
    assert 'share = "/usr/share"' not in lines
    plain = home("settings", "show").stdout
    assert 'share = ["/usr/lib", "/usr/lib:ro:at=/usr/share"]\n' in plain


@pytest.mark.parametrize("content", ["memroy = 1\n", "[[share]]\nx = 1\n"])
def test_a_run_does_not_begin_with_wrong_settings(home: Home, content: str) -> None:
    """A file that is wrong ends every run with its place and a remedy, and nothing is started."""
    home.user.write_text(content)
    done = home("run", "--", "true")
    assert done.returncode == 125
    assert done.stderr.startswith(f"cloche: {home.user}:")
    assert "\nhint: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "line",
    ['share = ["/usr", "{}/none"]', 'include = ["/x={}/none"]', 'disk = ["x={}/none"]', 'env = ["NONE"]'],
)
def test_an_error_of_the_host_names_the_line(home: Home, line: str) -> None:
    """What a file names and the host has not is an error of the run, and the hint says which line it is."""
    home.user.write_text("cpus = 1\n" + line.format(home.path) + "\n")
    done = home("run", "--", "true")
    assert done.returncode == 125
    assert f"\nhint: It is set in {home.user}:2. " in done.stderr
    home.user.unlink()
    assert "It is set in" not in home("run", "--share", "/none", "--", "true").stderr


def test_check_tells_everything(home: Home) -> None:
    """`settings check` lists all faults of all files, also as JSON, and of files that are named."""
    home.system.write_text("cpus = 0\n")
    home.user.write_text("xxx = 1\n[env]\nA = 1\n")
    done = home("settings", "check", "--json")
    assert done.returncode == 125
    found = [(row["path"], row["line"], row["column"]) for row in json.loads(done.stdout)]
    assert found == [(str(home.system), 1, 1), (str(home.user), 1, 1), (str(home.user), 3, 1)]
    done = home("settings", "check", str(home.user), str(home.path / "none"))
    assert done.returncode == 125
    assert f"{home.user}:3:1: 'A' of env must be a string" in done.stdout
    assert f"there is no file {home.path / 'none'}" in done.stdout
    home.user.write_text("cpus = 1\n")
    assert home("settings", "check", str(home.user)).returncode == 0


def test_a_file_that_is_checked_may_lie_anywhere(home: Home) -> None:
    """Only for files that runs read it matters who could have written them."""
    other = home.path / "open/draft.toml"
    other.parent.mkdir()
    other.parent.chmod(0o777)
    other.write_text("cpus = 1\n")
    assert home("settings", "check", str(other)).returncode == 0
    other.rename(home.user)
    assert home("settings", "check", str(home.user)).returncode == 0
    assert home("settings", "check", os.path.relpath(home.user)).returncode == 0
    home.user.chmod(0o666)
    assert "others than you" in home("settings", "check", str(home.user)).stdout


def test_the_doctor_looks_at_settings(home: Home) -> None:
    """`cloche doctor` names the files, or what is wrong with one and what mends it."""

    def finding() -> tuple[str, str, str]:
        rows = json.loads(home("doctor", "--json", XDG_CACHE_HOME="/proc/none").stdout)
        (row,) = (row for row in rows if row["name"] == "settings")
        return row["state"], row["detail"], row["remedy"]

    assert finding()[0] == "ok"
    home.user.write_text("cpus = 1\n")
    assert finding() == ("ok", str(home.user), "")
    home.user.write_text("cpu = 1\n")
    assert finding() == ("bad", f"{home.user}:1:1: there is no setting 'cpu'", "Did you mean cpus?")


def _is_refused(home: Home) -> str:
    done = home("settings", "show", "--json")
    assert "Traceback" not in done.stderr
    assert done.returncode == 125, done.stdout
    return done.stderr


MEMORY = {"memory": ("256M", "user", 1)}


@pytest.mark.parametrize(
    "change, undo",
    [
        (lambda home: home.user.chmod(0o620), lambda home: home.user.chmod(0o644)),
        (lambda home: home.user.chmod(0o602), lambda home: home.user.chmod(0o600)),
        (lambda home: home.user.parent.chmod(0o777), lambda home: home.user.parent.chmod(0o755)),
        (lambda home: home.user.parent.chmod(0o1777), lambda home: home.user.parent.chmod(0o700)),
    ],
    ids=["group", "others", "directory", "sticky"],
)
def test_what_others_can_write_is_refused(
    home: Home, change: Callable[[Home], None], undo: Callable[[Home], None]
) -> None:
    """Settings somebody else could have written are not used, whatever they say; taken back, they are."""
    home.user.write_text('memory = "256M"\n')
    assert home.show() == MEMORY
    change(home)
    assert "others than you can write to" in _is_refused(home)
    undo(home)
    assert home.show() == MEMORY


@pytest.mark.parametrize("link", [False, True], ids=["file", "link"])
def test_what_belongs_to_others_is_refused(
    home: Home, monkeypatch: pytest.MonkeyPatch, *, link: bool
) -> None:
    """Settings of another user are not used, also through a link; root's are anybody's."""
    home.user.write_text('memory = "256M"\n')
    if link:
        other = home.path / "other.toml"
        home.user.rename(other)
        home.user.symlink_to(other)
    mine = os.geteuid()
    for me in (mine, mine + 1):
        monkeypatch.setattr(os, "geteuid", lambda me=me: me)
        if mine in (me, 0):
            opened = settings_files.open_one(Level.USER, str(home.user))
            assert opened is not None
            os.close(opened.fd)
        else:
            with pytest.raises(SettingsError, match="belongs to another user"):
                settings_files.open_one(Level.USER, str(home.user))
    monkeypatch.undo()
    if mine == 0:
        os.chown(home.user, 65534, 65534)
        assert "belongs to another user" in _is_refused(home)
        os.chown(home.user, 0, 0)
        assert home.show() == MEMORY
        os.chown(home.user.parent, 65534, 65534)
        assert "belongs to another user" in _is_refused(home)


def test_the_owner_is_what_protects(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the look at owner and mode, what others can write would be read: the test above is no accident."""
    home.user.write_text('memory = "256M"\n')
    home.user.chmod(0o666)
    with pytest.raises(SettingsError):
        settings_files.open_one(Level.USER, str(home.user))
    monkeypatch.setattr(settings_files, "_check_trust", lambda *_: None)
    opened = settings_files.open_one(Level.USER, str(home.user))
    assert opened is not None
    assert "256M" in settings_files.read(opened)


def test_a_link_is_followed(home: Home) -> None:
    """Settings kept elsewhere and linked to are read."""
    real = home.path / "dotfiles.toml"
    real.write_text('memory = "256M"\n')
    home.user.symlink_to(real)
    assert home.show() == MEMORY
    real.chmod(0o666)
    assert "others than you" in _is_refused(home)


@pytest.mark.parametrize("kind", ["pipe", "directory", "device", "socket", "loop", "terminal"])
def test_what_is_no_file_is_refused_at_once(home: Home, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe nobody writes to, a directory, a device, a terminal: an error, and no waiting."""
    held: tuple[int, ...] = ()
    if kind == "pipe":
        os.mkfifo(home.user, 0o600)
    elif kind == "directory":
        home.user.mkdir(0o700)
    elif kind == "device":
        home.user.symlink_to("/dev/zero")
    elif kind == "socket":
        import socket

        with socket.socket(socket.AF_UNIX) as listening:
            monkeypatch.chdir(home.user.parent)  # the address is a short one
            listening.bind(home.user.name)
    elif kind == "loop":
        home.user.symlink_to(home.user)
    else:
        held = pty.openpty()
        home.user.symlink_to(os.ttyname(held[1]))
    message = _is_refused(home)
    assert str(home.user) in message
    for fd in held:
        os.close(fd)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"memory = '512M'\n#" + b"x" * 70_000, "too many"),
        (b"x" * 10_000_000, "too many"),
        (b"# \xff\n", ":1:3: the byte 0xff is not UTF-8"),
        (b"a = 1\n\n  \xc3\x28", ":3:3: the byte 0xc3 is not UTF-8"),
        (b"memory = '512M\0'", "found invalid character"),
        (b"\0" * 50_000, ":1:1: invalid statement"),
        (b"x = " + b"[" * 60_000, "nested too deeply"),
        (b"a." * 30_000 + b"a = 1", "there is no setting 'a'"),
        (b"[" + b"a." * 30_000 + b"a]", "there is no setting 'a'"),
        (b"x = " + b"{a=" * 15_000 + b"1" + b"}" * 15_000, "nested too deeply"),
        (b"memory = " + b"9" * 60_000, "a number is too long"),
    ],
    ids=["long", "10MB", "byte", "bytes", "nul", "nuls", "lists", "dots", "header", "tables", "digits"],
)
def test_a_hostile_file_is_an_error_soon(home: Home, content: bytes, message: str) -> None:
    """Whatever is in the file, the error comes soon and is a sentence, short enough to be read."""
    home.user.write_bytes(content)
    told = _is_refused(home)
    assert message in told.lower() or message in told
    assert len(told) < 1000


def test_a_file_that_cannot_be_read_is_an_error(ordinary: OrdinaryUser) -> None:
    """Settings that are there and may not be read are not left out silently."""
    script = (
        "umask 022; rm -rf ~/cfg; mkdir -p ~/cfg/cloche; echo 'cpus = 1' > ~/cfg/cloche/cloche.toml;"
        " chmod 0 ~/cfg/cloche/cloche.toml; XDG_CONFIG_HOME=~/cfg bin/cloche settings show; rm -rf ~/cfg"
    )
    done = ordinary.run(["sh", "-c", f"cd {ordinary.project}; {script}"])
    assert b"cfg/cloche/cloche.toml: Permission denied" in done.stderr


# What is kept of a file


def _age(path: Path) -> None:
    """Let a file be old enough to be remembered: its times are set back, but for that of its inode."""
    os.utime(path, (1, 1))


def test_what_a_file_says_is_kept_and_found(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read is found by the file's identity and times, and not when any of them is another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(home.path / "cache"))
    monkeypatch.setattr(settings_cache, "_YOUNG_NS", 0)
    home.user.write_text("cpus = 1\n")
    status = home.user.stat()
    entries = (Entry("cpus", "1"), Entry("share", "/a\n", 3), Entry("env", "A=ü", "A"))
    assert settings_cache.find("user", status) is None
    settings_cache.store("user", status, entries)
    assert settings_cache.find("user", status) == entries
    assert settings_cache.find("system", status) is None
    home.user.write_text("cpus = 2\n")
    assert settings_cache.find("user", home.user.stat()) is None
    settings_cache.store("user", home.user.stat(), ())
    assert settings_cache.find("user", home.user.stat()) == ()
    assert settings_cache.find("user", status) is None
    (kept,) = (home.path / "cache/cloche/settings-1").iterdir()
    kept.write_bytes(b"cpus\0")
    assert settings_cache.find("user", home.user.stat()) is None


def test_a_file_that_was_just_changed_is_not_kept(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file can change twice within one tick of the clock: only what has been as it is for a while is kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(home.path / "cache"))
    home.user.write_text("cpus = 1\n")
    _age(home.user)
    settings_cache.store("user", home.user.stat(), ())
    assert not (home.path / "cache").exists()


def test_what_is_kept_is_not_believed_where_others_write(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in a directory that others can write to is not what the file says."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(home.path / "cache"))
    monkeypatch.setattr(settings_cache, "_YOUNG_NS", 0)
    home.user.write_text("cpus = 1\n")
    settings_cache.store("user", home.user.stat(), (Entry("cpus", "1"),))
    (home.path / "cache/cloche/settings-1").chmod(0o777)
    assert settings_cache.find("user", home.user.stat()) is None


# Editing

EDITOR = """\
import sys
path = sys.argv[-1]
text = open(path).read()
open({record!r}, "a").write(text + "\\n---\\n")
open(path, "w").write({change})
sys.exit({status})
"""


def _editor(home: Home, change: str, status: int = 0) -> str:
    script = home.path / "an editor.py"
    script.write_text(EDITOR.format(record=str(home.path / "seen"), change=change, status=status))
    return f"{sys.executable} '{script}'"


def test_editing_begins_with_everything_commented(home: Home) -> None:
    """The first time there is a file with every key in it; left as it is, nothing is made of it."""
    done = home("settings", "edit", EDITOR=_editor(home, "text"))
    assert (done.returncode, done.stderr) == (0, "cloche: nothing was changed\n")
    assert not list(home.user.parent.iterdir())
    assert (home.path / "seen").read_text().startswith(home("settings", "template").stdout)
    done = home("settings", "edit", VISUAL=_editor(home, "text.replace('#cpus', 'cpus')"), EDITOR="false")
    assert (done.returncode, done.stderr) == (0, "")
    assert home.show()["cpus"][:2] == (2, "user")
    assert home.user.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("change", ["'memroy = 1'", "'cpus = ['", "'x' * 70000", "'\\0'"])
def test_what_is_wrong_is_not_taken(home: Home, change: str) -> None:
    """A file that is wrong does not replace one that is right, and what was written is kept beside it."""
    home.user.write_text("cpus = 1\n")
    done = home("settings", "edit", EDITOR=_editor(home, change))
    assert done.returncode == 125
    assert "is as it was" in done.stderr
    assert home.user.read_text() == "cpus = 1\n"
    refused = home.user.with_name("cloche.toml.refused")
    assert str(refused) in done.stderr
    assert sorted(path.name for path in home.user.parent.iterdir()) == ["cloche.toml", "cloche.toml.refused"]


def test_an_editor_that_fails_changes_nothing(home: Home) -> None:
    """An editor that fails, is not there, or is no command at all leaves everything as it was."""
    home.user.write_text("cpus = 1\n")
    for editor, message in (
        (_editor(home, "'cpus = 2'", 3), "status 3"),
        ("no-such-editor", "cannot find no-such-editor"),
        ("vi '", "a quote is missing"),
    ):
        done = home("settings", "edit", EDITOR=editor)
        assert done.returncode == 125
        assert message in done.stderr
        assert [path.name for path in home.user.parent.iterdir()] == ["cloche.toml"]
        assert home.user.read_text() == "cpus = 1\n"


def test_a_change_by_somebody_else_is_not_lost(home: Home) -> None:
    """What was changed while the editor ran stays, and what was edited is kept beside it."""
    home.user.write_text("cpus = 1\n")
    script = f"(open({str(home.user)!r}, 'w').write('cpus = 3\\n'), 'cpus = 2\\n')[1]"
    done = home("settings", "edit", EDITOR=_editor(home, script))
    assert done.returncode == 125
    assert home.user.read_text() == "cpus = 3\n"
    assert home.user.with_name("cloche.toml.refused").read_text() == "cpus = 2\n"


def test_a_link_stays_one_when_it_is_edited(home: Home) -> None:
    """What a link leads to is changed in its own place, with the mode it had."""
    real = home.path / "dotfiles.toml"
    real.write_text("cpus = 1\n")
    real.chmod(0o644)
    home.user.symlink_to(real)
    assert home("settings", "edit", EDITOR=_editor(home, "'cpus = 2\\n'")).returncode == 0
    assert home.user.is_symlink()
    assert (real.read_text(), real.stat().st_mode & 0o777) == ("cpus = 2\n", 0o644)


@pytest.mark.parametrize("again", [True, False])
def test_on_a_terminal_what_is_wrong_can_be_edited_again(home: Home, *, again: bool) -> None:
    """The user is asked, and the editor begins with what was written; no means that it is kept beside the file."""
    entry = pwd.getpwuid(os.geteuid())
    user = OrdinaryUser(entry, home.path, CLOCHE.parents[1])
    editor = _editor(home, "'cpus = 3\\n' if text == 'cpus = 0\\n' else 'cpus = 0\\n'")
    home.user.write_text("cpus = 1\n")
    words = [f"{name}={value}" for name, value in {**home.env, "EDITOR": editor}.items()]
    with TerminalProgram(user, ["env", *words, str(CLOCHE), "settings", "edit"]) as program:
        program.expect(b"cpus: '0' is not a positive whole number")
        program.expect(b"edit it again? [Y/n] ")
        program.type(b"\n" if again else b"n\n")
        assert program.wait() == (0 if again else 125)
    assert home.user.read_text() == ("cpus = 3\n" if again else "cpus = 1\n")
    assert home.user.with_name("cloche.toml.refused").exists() is not again


def test_keys_are_the_editors(home: Home) -> None:
    """Keys that end programs go to the editor: cloche goes on, and takes what was written."""
    entry = pwd.getpwuid(os.geteuid())
    user = OrdinaryUser(entry, home.path, CLOCHE.parents[1])
    script = home.path / "editor.sh"
    script.write_text(
        "#!/bin/sh\ntrap 'echo cpus = 4 >\"$1\"; exit 0' INT\ntrap '' QUIT\necho ready\nwhile :; do sleep 0.05; done\n"
    )
    script.chmod(0o755)
    home.user.write_text("cpus = 1\n")
    words = [f"{name}={value}" for name, value in {**home.env, "EDITOR": str(script)}.items()]
    with TerminalProgram(user, ["env", *words, str(CLOCHE), "settings", "edit"]) as program:
        program.expect(b"ready")
        program.type(b"\x1c")
        program.type(b"\x03")
        assert program.wait() == 0
    assert home.user.read_text() == "cpus = 4\n"
