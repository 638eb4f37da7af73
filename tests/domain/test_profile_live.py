"""What can be done to a profile while a domain runs with it: it is looked at, copied, exported and made larger."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from support.domains import OWN
from support.errors import check_error
from support.profiles import is_clean, profile, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.runs import Runner


@pytest.fixture(scope="module", params=["ordinary", "caller"])
def runner(request: pytest.FixtureRequest) -> Runner:
    """Provide cloche as both run it."""
    runner: Runner = request.getfixturevalue("cloche" if request.param == "ordinary" else "cloche_as_caller")
    return runner


@contextmanager
def running(runner: Runner, name: str, script: str) -> Iterator[subprocess.Popen[bytes]]:
    """Provide a run with a profile that has done something and goes on until its input ends."""
    process = runner.popen("-p", name, "sh", "-c", f"{script}; echo go; cat", stdin=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"go\n"
        try:
            yield process
        finally:
            process.communicate(b"")


def size_of(runner: Runner, name: str) -> int:
    """Return how many MiB the file system of a profile's guest has."""
    blocks, size = run(runner, "stat -f -c '%b %S' /", "-p", name).split()
    return int(blocks) * int(size) >> 20


def test_a_running_one_grows(runner: Runner) -> None:
    """The guest's file system is larger at once and can be filled; one can still go back to before it was."""
    name = "grows" + OWN
    with profile(runner, name, "--size", "64M") as place:
        with running(runner, name, "echo kept > ~/file"):
            before = size_of(runner, name)
            check_error(runner("profile", "resize", name, "32M"), 125)
            grown = runner("profile", "resize", name, "200M")
            assert grown.returncode == 0, grown.stderr
            assert before < 64
            assert size_of(runner, name) > 150
            run(runner, "head -c 100M /dev/urandom > ~/big; sync; rm ~/big", "-p", name)
            # Once more, and what the guest has written so far is there.
            assert runner("profile", "resize", name, "300M").returncode == 0
            assert run(runner, "cat ~/file", "-p", name) == b"kept\n"
        assert is_clean(place / "disk.img")
        assert (place / "disk.img").stat().st_size == 300 << 20
        assert size_of(runner, name) > 250
        (_, start) = json.loads(runner("profile", "log", "--json", name).stdout)
        assert runner("profile", "revert", name, str(start["number"])).returncode == 0
        assert (place / "disk.img").stat().st_size == 64 << 20
        assert is_clean(place / "disk.img")
        assert size_of(runner, name) == before


def test_one_that_was_killed_while_it_grew_goes_on(runner: Runner) -> None:
    """Larger is then the disk and not yet its file system: nothing is lost, and the same command finishes it."""
    name = "half" + OWN
    with profile(runner, name, "--size", "64M") as place:
        with running(runner, name, "echo kept > ~/file; sync") as process:
            # The supervisor's half of it, and then no guest's: as if both had been killed in between.
            ident = json.loads(runner("profile", "list", "--json").stdout)
            (ident,) = (one["domain"] for one in ident if one["name"] == name)
            program = (
                f"import sys; sys.path.insert(0, {str(runner.user.project / 'src')!r})\n"
                "from cloche.domain.control.client import Control\n"
                "from cloche.domain.control.fields import Nothing\n"
                "from cloche.domain.control.growing import ProfileGrow\n"
                f"with Control({ident!r}) as control:\n    control.ask(ProfileGrow(200 << 20), Nothing)\n"
            )
            asked = runner.user.run(["/usr/bin/python3", "-c", program])
            assert asked.returncode == 0, asked.stderr
            process.send_signal(signal.SIGKILL)
        assert (place / "disk.img").stat().st_size == 200 << 20
        assert size_of(runner, name) < 64
        assert run(runner, "cat ~/file", "-p", name) == b"kept\n"
        assert runner("profile", "resize", name, "200M").returncode == 0
        assert size_of(runner, name) > 150
        assert is_clean(place / "disk.img")


def test_a_running_one_is_looked_at_and_copied(runner: Runner) -> None:
    """Its differences are as its programs see them; a copy is whole, and closed as cleanly as if nobody used it."""
    name, copy = "live" + OWN, "copy" + OWN
    script = "echo 1 > ~/file; rm /etc/ld.so.cache; mkdir ~/many; for i in $(seq 500); do echo $i > ~/many/$i; done"
    with profile(runner, name) as place, running(runner, name, script):
        home = runner.user.home if runner.user.entry.pw_uid else "/root"
        said = json.loads(runner("profile", "diff", "--json", name, f"{home}").stdout)
        kinds = {one["path"]: one["kind"] for one in said}
        assert kinds[f"{home}/file"] == "added"
        assert len(kinds) == 502
        # The twin: what is read while the guest has not been told is no closed disk.
        torn = place / "torn"
        shutil.copy(place / "disk.img", torn)
        assert not is_clean(torn)
        torn.unlink()
        cloned = runner("profile", "clone", name, copy)
        assert cloned.returncode == 0, cloned.stderr
        try:
            assert is_clean(place.parent / copy / "disk.img")
            assert (place.parent / copy / "lock").exists() is False
            run(runner, "echo 2 >> ~/file", "-p", name)
            assert run(runner, "cat ~/file; ls ~/many | wc -l", "-p", copy) == b"1\n500\n"
            archive = runner.user.home / f"live{OWN}.prof"
            exported = runner("profile", "export", name, str(archive))
            assert exported.returncode == 0, exported.stderr
            run(runner, "echo 3 >> ~/file", "-p", name)
            assert runner("profile", "delete", copy).returncode == 0
            assert runner("profile", "import", str(archive), copy).returncode == 0
            archive.unlink()
            assert run(runner, "cat ~/file", "-p", copy) == b"1\n2\n"
        finally:
            runner("profile", "delete", copy)


def test_a_copy_that_is_not_finished_leaves_nothing_and_nobody_waiting(runner: Runner) -> None:
    """Whoever copies is killed, or the domain ends meanwhile: the guest goes on, and no copy has a name."""
    name = "cut" + OWN
    with profile(runner, name) as place, running(runner, name, "true"):
        (ident,) = (
            one["domain"]
            for one in json.loads(runner("profile", "list", "--json").stdout)
            if one["name"] == name
        )
        begin = (
            f"import sys; sys.path.insert(0, {str(runner.user.project / 'src')!r})\n"
            "from cloche.api.profile_live import still\n"
            f"with still({name!r}, {ident!r}) as go_on:\n"
            "    print('still', flush=True); sys.stdin.read()\n"
            "    go_on()\n"
        )
        for ends in ("kill", "stop"):
            copier = runner.user.popen(["/usr/bin/python3", "-c", begin], stdin=subprocess.PIPE)
            with copier:
                assert copier.stdout is not None
                assert copier.stdout.readline() == b"still\n"
                if ends == "kill":
                    copier.kill()
                    # It can write again.
                    assert run(runner, "echo x > ~/more; sync; cat ~/more", "-p", name) == b"x\n"
                else:
                    assert runner("stop", ident).returncode == 0
                    _, said = copier.communicate(b"")
                    assert copier.returncode != 0
                    assert b"ProfileError" in said or b"DomainError" in said
        assert is_clean(place / "disk.img")
