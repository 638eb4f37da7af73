"""Profiles: what one run changes is there in the next, nothing else is, and no end of a run damages the disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from support.errors import check_error

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.runs import Runner


@pytest.fixture(scope="module", params=["ordinary", "caller"])
def runner(request: pytest.FixtureRequest) -> Runner:
    """Provide cloche as both run it."""
    runner: Runner = request.getfixturevalue("cloche" if request.param == "ordinary" else "cloche_as_caller")
    return runner


@contextmanager
def profile(runner: Runner, name: str, *options: str) -> Iterator[Path]:
    """Provide a profile; yields its directory."""
    made = runner("profile", "new", *options, name)
    assert made.returncode == 0, made.stderr
    try:
        yield runner.user.home / ".local/share/cloche/profiles" / name
    finally:
        gone = runner("profile", "delete", name)
        assert gone.returncode == 0, gone.stderr


def run(runner: Runner, script: str, *options: str, **more: object) -> bytes:
    """Run a script that succeeds and says nothing on stderr; returns what it has written."""
    done = runner.sh(script, *options, **more)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr
    return done.stdout


def is_clean(image: Path) -> bool:
    """Tell whether the disk of a profile that nobody uses was closed cleanly; a test may look into it."""
    looked = subprocess.run(["e2fsck", "-fn", str(image)], capture_output=True, check=False)
    head = subprocess.run(["dumpe2fs", "-h", str(image)], capture_output=True, check=False).stdout
    return looked.returncode == 0 and b"needs_recovery" not in head


@pytest.mark.parametrize("cold", [(), ("--cold",)], ids=["template", "cold"])
def test_changes_stay(runner: Runner, cold: tuple[str, ...]) -> None:
    """A home, a file of the host's that was changed, one that was deleted: as they were left, in the profile alone."""
    with profile(runner, "stay") as place:
        run(
            runner,
            "echo kept > ~/file; echo changed > /usr/share/doc/cloche-test; rm /etc/ld.so.cache; id -u > ~/who",
            *cold,
            "--privileged",
            "-p",
            "stay",
        )
        assert is_clean(place / "disk.img")
        said = run(runner, "cat ~/file /usr/share/doc/cloche-test; ls /etc/ld.so.cache 2>&1; ls -a ~", *cold, "-p",
                   "stay", "--privileged")  # fmt: skip
        assert said.startswith(b"kept\nchanged\n")
        assert b"No such file" in said
        assert is_clean(place / "disk.img")
        assert (
            run(runner, "ls ~/file /usr/share/doc/cloche-test 2>/dev/null; true", *cold, "--privileged")
            == b""
        )
        assert not os.path.exists("/usr/share/doc/cloche-test")
        entry = json.loads(runner("profile", "list", "--json").stdout)[0]
        assert (entry["name"], entry["state"], entry["size_bytes"]) == ("stay", "ready", 20 << 30)


def test_the_home_is_made_once(runner: Runner) -> None:
    """The first start makes a home as any other's; what was done to it since is left alone."""
    with profile(runner, "home"):
        fresh = run(runner, "ls -lan ~ | sed 1,2d | awk '{print $1,$3,$4,$9}'; stat -c '%u %a' ~")
        assert run(runner, "ls -lan ~ | sed 1,2d | awk '{print $1,$3,$4,$9}'; stat -c '%u %a' ~", "-p",
                   "home").splitlines()[-2:] == fresh.splitlines()[-2:]  # fmt: skip
        run(runner, "rm ~/.bashrc; echo mine > ~/.profile", "-p", "home")
        assert (
            run(runner, "ls -a ~; cat ~/.profile", "-p", "home") == b".\n..\n.bash_logout\n.profile\nmine\n"
        )


def test_the_profile_of_the_programs_name(runner: Runner) -> None:
    """`cloche CMD` uses the profile called so, `-t` never does, and both together are refused."""
    with profile(runner, "sh"):
        run(runner, "echo kept > ~/file")
        assert run(runner, "cat ~/file") == b"kept\n"
        assert run(runner, "ls ~", "-t") == b""
        check_error(runner.sh("true", "-t", "-p", "sh"), 125, "leaves nothing")
    assert run(runner, "ls ~") == b""


def test_killed_it_goes_on(runner: Runner) -> None:
    """What was synced is there after the supervisor was killed; the disk is looked at, and nothing said of that."""
    with profile(runner, "kill") as place:
        left = runner.popen("-p", "kill", "sh", "-c", "echo kept > ~/file; sync; echo more > ~/more; echo go; cat",
                            stdin=subprocess.PIPE)  # fmt: skip
        assert left.stdout is not None
        assert left.stdout.readline() == b"go\n"
        check_error(runner("profile", "delete", "kill"), 125, "in use")
        left.send_signal(signal.SIGKILL)
        left.communicate()
        shown = runner("-p", "kill", "--timings", "cat", ".profile")
        assert shown.returncode == 0
        assert b"disk checked" in shown.stderr
        assert run(runner, "cat ~/file", "-p", "kill") == b"kept\n"
        assert is_clean(place / "disk.img")


def test_damage_is_mended_or_told(runner: Runner) -> None:
    """What e2fsck mends by itself is one line; what it does not ends the run with what it said."""
    with profile(runner, "hurt", "--size", "64M") as place:
        run(runner, "echo kept > ~/file", "-p", "hurt")
        left = runner.popen("-p", "hurt", "sh", "-c", "echo go; cat", stdin=subprocess.PIPE)
        assert left.stdout is not None
        assert left.stdout.readline() == b"go\n"
        left.send_signal(signal.SIGKILL)
        left.communicate()
        image = place / "disk.img"
        damage(image, "set_inode_field /upper links_count 9", "set_super_value state 2")
        mended = runner.sh("cat ~/file", "-p", "hurt")
        assert (mended.returncode, mended.stdout) == (0, b"kept\n"), mended.stderr
        assert b"was mended" in mended.stderr
        assert (place / "lock").read_bytes() == b""
        os.truncate(image, 0)
        os.truncate(image, 64 << 20)
        check_error(runner.sh("true", "-p", "hurt"), 125, "could not be set up")
        check_error(runner.sh("true", "-p", "hurt"), 125, "e2fsck cannot mend it")


def damage(image: Path, *commands: str) -> None:
    """Change something on the disk of a profile that nobody uses."""
    for command in commands:
        subprocess.run(["debugfs", "-w", "-R", command, str(image)], capture_output=True, check=True)


def test_what_is_deleted_is_the_hosts_again(runner: Runner) -> None:
    """Blocks of a file that was deleted go back to the host while the guest still runs."""
    with profile(runner, "trim") as place:
        image = place / "disk.img"
        run(runner, "head -c 50000000 /dev/urandom > ~/big", "-p", "trim")
        full = image.stat().st_blocks * 512
        assert full > 50_000_000
        run(runner, "rm ~/big", "-p", "trim")
        assert image.stat().st_blocks * 512 < full - 40_000_000


def test_refusals(runner: Runner) -> None:
    """What is not there, or cannot have a profile, is named with what to do."""
    check_error(runner("-p", "absent", "true"), 125, "you have no profile absent")
    check_error(runner("-p", "../x", "true"), 125, "cannot be a profile's name")
    check_error(runner("profile", "new", "a/b"), 125, "cannot be a profile's name")
    check_error(runner("profile", "new"), 125, "takes one name")
    check_error(runner("profile", "delete", "absent"), 125, "you have no profile absent")
    with profile(runner, "no"):
        check_error(runner("-p", "no", "--devices=vmm", "true"), 125, "cannot have a profile")
        if runner.user.entry.pw_uid != 0:
            check_error(runner("-p", "no", "--driver", "bwrap", "true"), 125, "cannot do profiles")
        shown = runner("--dry-run", "-p", "no", "true")
        assert b"\nprofile     no\n" in shown.stdout
        assert b"no: a machine that waits has no profile's disk" in shown.stdout or b"not set" in shown.stdout
