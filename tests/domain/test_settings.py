"""What files of settings say, in real machines: the program sees it, and the command line takes it back."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from subprocess import CompletedProcess

    from support.runs import Runner

SEES = (
    "echo $A $B; cat /shown/file; touch /shown/new 2>/dev/null && echo wrote; pwd; id -u;"
    " awk '/MemTotal/ {print $2 < 300000}' /proc/meminfo"
)
#: What the user's settings are.
USER = 'memory = "256M"\nworkdir = "/usr"\nprivileged = true\n[env]\nA = "user"\n'


class Set:
    """An ordinary user with settings of his own and of the system."""

    def __init__(self, runner: Runner, place: Path) -> None:
        self.runner = runner
        self.shared = place / "shared"
        self.data = place / "data"
        self.env = {
            "XDG_CONFIG_HOME": str(place / "user"),
            "XDG_CONFIG_DIRS": str(place / "system"),
            "XDG_DATA_HOME": str(self.data),
        }
        self.shared.mkdir()
        self.data.mkdir(mode=0o700)
        (self.shared / "file").write_text("text\n")
        self.write(
            "system",
            f'memory = "512M"\nenv = ["A=system", "B=system"]\nshare = ["{self.shared}:at=/shown"]\n',
        )
        self.write("user", USER)
        for path in [place, *place.rglob("*")]:
            os.chown(path, runner.user.entry.pw_uid, runner.user.entry.pw_gid)

    def write(self, level: str, text: str) -> None:
        """Write the settings of a level."""
        path = Path(
            self.env[{"user": "XDG_CONFIG_HOME", "system": "XDG_CONFIG_DIRS"}[level]], "cloche/cloche.toml"
        )
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.parent.parent.chmod(0o755)
        path.write_text(text)

    def run(self, *words: str) -> CompletedProcess[bytes]:
        """Run cloche with these settings."""
        done = self.runner(*words, env=self.env)
        assert done.returncode == 0, done.stderr
        return done


@pytest.fixture(scope="module")
def settings(cloche: Runner) -> Iterator[Set]:
    """Provide somebody with settings."""
    place = Path(tempfile.mkdtemp(dir=cloche.user.home, prefix="settings-"))
    yield Set(cloche, place)
    shutil.rmtree(place)


def test_a_run_is_as_files_say_and_as_the_command_line_says_instead(settings: Set) -> None:
    """Everything comes from the files; --no-KEY and what the command line says itself are stronger."""
    seen = settings.run("sh", "-c", SEES).stdout.decode().splitlines()
    assert seen == ["user system", "text", "/usr", "0", "1"]
    mine = ("--no-memory", "-e", "B=run", "--share", f"{settings.shared}:rw:at=/shown", "--no-privileged")
    seen = settings.run(*mine, "--no-workdir", "-w", "/tmp", "sh", "-c", SEES).stdout.decode().splitlines()
    uid = str(settings.runner.user.entry.pw_uid)
    assert seen == ["user run", "text", "wrote", "/tmp", uid, "0"]
    assert (settings.shared / "new").exists()


def test_a_plan_says_where_it_comes_from(settings: Set) -> None:
    """--dry-run ends with what files say, and what the command line has replaced is not among it."""
    plan = settings.run("run", "--dry-run", "-e", "A=x", "true").stdout.decode()
    said = [line.split(None, 1)[1] for line in plan.splitlines() if line.startswith("settings ")]
    user, system = (
        f"{settings.env[name]}/cloche/cloche.toml" for name in ("XDG_CONFIG_HOME", "XDG_CONFIG_DIRS")
    )
    assert said == [
        f'share = "{settings.shared}:at=/shown" (system: {system}:3)',
        f"privileged = true (user: {user}:3)",
        f'env = "B=system" (system: {system}:2)',
        f'workdir = "/usr" (user: {user}:2)',
        f'memory = "256M" (user: {user}:1)',
    ]


def test_a_detached_domain_has_them_too(settings: Set) -> None:
    """`run -d` begins with the same settings."""
    started = settings.run("run", "-d", "--name", "settled", "--", "sh", "-c", "echo $A; pwd")
    assert started.stdout == b"settled\n"
    assert settings.run("wait", "settled").returncode == 0
    assert settings.run("logs", "settled").stdout == b"user\n/usr\n"
    settings.run("rm", "settled")


def test_an_application_has_its_settings_and_keeps_what_it_changes(settings: Set) -> None:
    """`cloche -p NAME` alone starts the profile's command, with its settings over the user's, on the profile's disk."""
    settings.run("profile", "new", "notes")
    script = "echo x >>/var/tmp/notes; wc -l </var/tmp/notes; echo $A $B; pwd"
    path = settings.data / "cloche/profiles/notes/cloche.toml"
    path.write_text(
        f'command = "sh"\nargs = ["-c", "{script}"]\nreset = ["workdir"]\nworkdir = "/opt"\nenv = ["A=app"]\n'
    )
    os.chown(path, settings.runner.user.entry.pw_uid, settings.runner.user.entry.pw_gid)
    for count in (b"1", b"2"):
        assert settings.run("-p", "notes").stdout == count + b"\napp system\n/opt\n"
    assert settings.run("-p", "notes", "cat", "/var/tmp/notes").stdout == b"x\nx\n"
    settings.run("profile", "delete", "notes")


def test_a_pipeline_of_bare_runs_shares_the_default_profile(settings: Set) -> None:
    """Both ends run in one machine, whichever is first, and say nothing of each other; another machine is named."""
    settings.run("profile", "new", "always")
    program = settings.runner.program
    text = 'memory = "256M"\ndefault_profile = "always"\n'
    settings.write("user", text)
    try:
        both = (
            f"{program} cat /proc/sys/kernel/random/boot_id | {program} cat - /proc/sys/kernel/random/boot_id"
        )
        done = settings.runner.user.run(["sh", "-c", both], env=settings.env)
        assert (done.returncode, done.stderr) == (0, b"")
        first, second = done.stdout.split()
        assert first == second
        # The reader has the domain, and is the last to end; the writer has to be told that its reader has gone.
        endless = f"{program} sh -c 'while echo x; do :; done' | {program} head -n 1"
        done = settings.runner.user.run(["bash", "-o", "pipefail", "-c", endless], env=settings.env)
        assert done.stdout == b"x\n"
        with settings.runner.user.popen(
            [program, "sh", "-c", "echo up; cat"], env=settings.env, stdin=subprocess.PIPE
        ) as first_run:
            assert first_run.stdout is not None
            assert first_run.stdout.readline() == b"up\n"
            other = settings.runner("-m", "300M", "true", env=settings.env)
            assert other.returncode == 125
            assert b"differs in --memory" in other.stderr
            first_run.communicate(b"")
    finally:
        settings.write("user", USER)
        settings.run("profile", "delete", "always")


def test_a_sandbox_has_them_where_that_was_asked_for(settings: Set) -> None:
    """The API's machine is as files say with settings=True, for every program in it, and not without."""
    source = settings.runner.user.project / "src"
    program = (
        f"import sys; sys.path.insert(0, {str(source)!r}); import cloche\n"
        "with cloche.Sandbox(settings=True) as box:\n"
        "    box.run(['sh', '-c', 'echo $A $B $C; pwd; id -u'], env={'C': 'call'})\n"
        "cloche.run(['sh', '-c', 'echo $A; id -u'])\n"
    )
    done = settings.runner.user.run(["/usr/bin/python3", "-c", program], env=settings.env)
    uid = settings.runner.user.entry.pw_uid
    assert done.stdout.decode() == f"user system call\n/usr\n0\n\n{uid}\n", done.stderr
