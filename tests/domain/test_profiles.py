"""Profiles: what one run changes is there in the next, nothing else is, and no end of a run damages the disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.domains import OWN
from support.errors import check_error
from support.profiles import is_clean, profile, run

if TYPE_CHECKING:
    from support.runs import Runner


#: A program of whose name nobody else has a profile.
PROGRAM = "dash"


@pytest.fixture(scope="module", params=["ordinary", "caller"])
def runner(request: pytest.FixtureRequest) -> Runner:
    """Provide cloche as both run it."""
    runner: Runner = request.getfixturevalue("cloche" if request.param == "ordinary" else "cloche_as_caller")
    return runner


@pytest.mark.parametrize("cold", [(), ("--cold",)], ids=["template", "cold"])
def test_changes_stay(runner: Runner, cold: tuple[str, ...]) -> None:
    """A home, a file of the host's that was changed, one that was deleted: as they were left, in the profile alone."""
    with profile(runner, "stay" + OWN) as place:
        run(
            runner,
            "echo kept > ~/file; echo changed > /usr/share/doc/cloche-test; rm /etc/ld.so.cache; id -u > ~/who",
            *cold,
            "--privileged",
            "-p",
            "stay" + OWN,
        )
        assert is_clean(place / "disk.img")
        said = run(runner, "cat ~/file /usr/share/doc/cloche-test; ls /etc/ld.so.cache 2>&1; ls -a ~", *cold, "-p",
                   "stay" + OWN, "--privileged")  # fmt: skip
        assert said.startswith(b"kept\nchanged\n")
        assert b"No such file" in said
        assert is_clean(place / "disk.img")
        assert (
            run(runner, "ls ~/file /usr/share/doc/cloche-test 2>/dev/null; true", *cold, "--privileged")
            == b""
        )
        assert not os.path.exists("/usr/share/doc/cloche-test")
        (entry,) = (
            one for one in json.loads(runner("profile", "list", "--json").stdout) if OWN in one["name"]
        )
        assert (entry["name"], entry["state"], entry["size_bytes"]) == ("stay" + OWN, "ready", 20 << 30)


def test_the_home_is_made_once(runner: Runner) -> None:
    """The first start makes a home as any other's; what was done to it since is left alone."""
    with profile(runner, "home" + OWN):
        fresh = run(runner, "ls -lan ~ | sed 1,2d | awk '{print $1,$3,$4,$9}'; stat -c '%u %a' ~")
        assert run(runner, "ls -lan ~ | sed 1,2d | awk '{print $1,$3,$4,$9}'; stat -c '%u %a' ~", "-p",
                   "home" + OWN).splitlines()[-2:] == fresh.splitlines()[-2:]  # fmt: skip
        run(runner, "rm ~/.bashrc; echo mine > ~/.profile", "-p", "home" + OWN)
        assert (
            run(runner, "ls -a ~; cat ~/.profile", "-p", "home" + OWN)
            == b".\n..\n.bash_logout\n.profile\nmine\n"
        )


def test_a_home_is_as_a_file_system_is(runner: Runner) -> None:
    """Files in it have its device number, a move to elsewhere and back works, and what is set-user-id stays so."""
    program = """
import os, shutil, subprocess, sys
home = os.path.expanduser("~" + sys.argv[1])
os.makedirs(home + "/a")
open(home + "/a/f", "w").write("kept")
print(os.path.ismount(home + "/a/f"), os.stat(home + "/a").st_dev == os.stat(home + "/a/f").st_dev)
shutil.move(home + "/a", "/srv/a")
shutil.move("/srv/a", home + "/b")
shutil.copy("/usr/bin/id", home + "/id")
os.chown(home + "/id", 0, 0)
os.chmod(home + "/id", 0o4755)
os.chmod(home, 0o755)
print(subprocess.check_output([home + "/id", "-u"], user=4242).decode().strip())
"""
    name, user = "own" + OWN, runner.user.entry.pw_name
    with profile(runner, name) as place:
        done = runner("-p", name, "--privileged", "python3", "-c", program, user)
        assert done.stdout == b"False True\n0\n", done.stderr
        assert run(runner, "cat ~/b/f", "-p", name) == b"kept"
        assert is_clean(place / "disk.img")


def test_the_profile_of_the_programs_name(runner: Runner) -> None:
    """`cloche CMD` uses the profile called so, `-t` never does, both together are refused; it is not joined so."""
    with profile(runner, PROGRAM):
        assert runner(PROGRAM, "-c", "echo kept > ~/file").returncode == 0
        assert runner(PROGRAM, "-c", "cat ~/file").stdout == b"kept\n"
        assert runner("-t", PROGRAM, "-c", "ls ~").stdout == b""
        check_error(runner("-t", "-p", PROGRAM, "true"), 125, "leaves nothing")
        left = runner.popen(PROGRAM, "-c", "echo go; cat", stdin=subprocess.PIPE)
        assert left.stdout is not None
        assert left.stdout.readline() == b"go\n"
        check_error(runner(PROGRAM, "-c", "true"), 125, f"the profile {PROGRAM} is in use", "cloche -t")
        assert runner("-t", PROGRAM, "-c", "true").returncode == 0
        left.communicate(b"")
        assert left.returncode == 0
    assert runner(PROGRAM, "-c", "ls ~").stdout == b""


def test_killed_it_goes_on(runner: Runner) -> None:
    """What was synced is there after the supervisor was killed; the disk is looked at, and nothing said of that."""
    with profile(runner, "kill" + OWN) as place:
        left = runner.popen("-p", "kill" + OWN, "sh", "-c", "echo kept > ~/file; sync; echo > ~/more; echo go; cat",
                            stdin=subprocess.PIPE)  # fmt: skip
        assert left.stdout is not None
        assert left.stdout.readline() == b"go\n"
        check_error(runner("profile", "delete", "kill" + OWN), 125, "in use")
        left.send_signal(signal.SIGKILL)
        left.communicate()
        shown = runner("-p", "kill" + OWN, "--timings", "cat", ".profile")
        assert shown.returncode == 0
        assert b"disk checked" in shown.stderr
        assert run(runner, "cat ~/file", "-p", "kill" + OWN) == b"kept\n"
        assert is_clean(place / "disk.img")


def test_damage_is_mended_or_told(runner: Runner) -> None:
    """What e2fsck mends by itself is one line; what it does not ends the run with what it said."""
    with profile(runner, "hurt" + OWN, "--size", "64M") as place:
        run(runner, "echo kept > ~/file", "-p", "hurt" + OWN)
        left = runner.popen("-p", "hurt" + OWN, "sh", "-c", "echo go; cat", stdin=subprocess.PIPE)
        assert left.stdout is not None
        assert left.stdout.readline() == b"go\n"
        left.send_signal(signal.SIGKILL)
        left.communicate()
        image = place / "disk.img"
        damage(image, "set_inode_field /upper links_count 9", "set_super_value state 2")
        mended = runner.sh("cat ~/file", "-p", "hurt" + OWN)
        assert (mended.returncode, mended.stdout) == (0, b"kept\n"), mended.stderr
        assert b"was mended" in mended.stderr
        assert (place / "lock").read_bytes() == b""
        os.truncate(image, 0)
        os.truncate(image, 64 << 20)
        check_error(runner.sh("true", "-p", "hurt" + OWN), 125, "cannot be mounted", "makes the disk anew")
        check_error(runner.sh("true", "-p", "hurt" + OWN), 125, "e2fsck cannot mend it")


def damage(image: Path, *commands: str) -> None:
    """Change something on the disk of a profile that nobody uses."""
    for command in commands:
        subprocess.run(["debugfs", "-w", "-R", command, str(image)], capture_output=True, check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_of_the_host_damages_none(runner: Runner) -> None:
    """A run whose writes found no room is not mended before there is some, and then all that was written is there."""
    data = Path(tempfile.mkdtemp(dir=runner.user.home, prefix="small-"))
    entry = runner.user.entry
    options = f"size=48M,mode=700,uid={entry.pw_uid},gid={entry.pw_gid}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(data)], check=True)
    env = {"XDG_DATA_HOME": str(data)}
    try:
        assert runner("profile", "new", "--size", "64M", "full", env=env).returncode == 0
        run(runner, "echo kept > ~/file", "-p", "full", env=env)
        (data / "ballast").write_bytes(bytes(24 << 20))
        script = "echo early > ~/other; sync ~/other; head -c 40M /dev/zero | tr '\\0' x > ~/big; sync"
        done = runner.sh(script, "-p", "full", env=env)
        assert b"the host's disk that holds the profile full is full" in done.stderr
        assert os.statvfs(data).f_bavail < 1024
        for _ in range(2):
            done = runner.sh("true", "-p", "full", env=env)
            check_error(done, 125, "too little room to mend its disk", "nothing is lost yet")
        (data / "ballast").unlink()
        done = runner.sh("cat ~/file ~/other", "-p", "full", env=env)
        assert (done.returncode, done.stdout) == (0, b"kept\nearly\n"), done.stderr
        assert b"its disk was mended" in done.stderr
    finally:
        subprocess.run(["umount", str(data)], check=True)
        data.rmdir()


def test_what_is_deleted_is_the_hosts_again(runner: Runner) -> None:
    """Blocks of a file that was deleted go back to the host while the guest still runs."""
    with profile(runner, "trim" + OWN) as place:
        image = place / "disk.img"
        run(runner, "head -c 50000000 /dev/urandom > ~/big", "-p", "trim" + OWN)
        full = image.stat().st_blocks * 512
        assert full > 50_000_000
        run(runner, "rm ~/big", "-p", "trim" + OWN)
        assert image.stat().st_blocks * 512 < full - 40_000_000


def test_refusals(runner: Runner) -> None:
    """What is not there, or cannot have a profile, is named with what to do."""
    check_error(runner("-p", "absent", "true"), 125, "you have no profile absent")
    check_error(runner("-p", "../x", "true"), 125, "cannot be a profile's name")
    check_error(runner("profile", "new", "a/b"), 125, "cannot be a profile's name")
    check_error(runner("profile", "new"), 125, "takes one name")
    check_error(runner("profile", "delete", "absent"), 125, "you have no profile absent")
    with profile(runner, "no" + OWN):
        check_error(runner("-p", "no" + OWN, "--devices=vmm", "true"), 125, "cannot have a profile")
        if runner.user.entry.pw_uid != 0:
            check_error(runner("-p", "no" + OWN, "--driver", "bwrap", "true"), 125, "cannot do profiles")
        shown = runner("--dry-run", "-p", "no" + OWN, "true")
        assert f"\nprofile     no{OWN}\n".encode() in shown.stdout
        assert b"no: a machine that waits has no profile's disk" in shown.stdout or b"not set" in shown.stdout


def test_a_second_run_joins(runner: Runner) -> None:
    """Named, and asking for the same machine, it runs where the profile is used; else that is told, and why."""
    with profile(runner, "join" + OWN):
        first = runner.popen(
            "-p", "join" + OWN, "sh", "-c", "echo $$ > /tmp/first; echo go; cat", stdin=subprocess.PIPE
        )
        assert first.stdout is not None
        assert first.stdout.readline() == b"go\n"
        assert run(runner, "kill -0 $(cat /tmp/first) && echo joined; pwd", "-p", "join" + OWN).startswith(
            b"joined\n"
        )
        assert runner.sh("exit 7", "-p", "join" + OWN).returncode == 7
        check_error(runner.sh("true", "-p", "join" + OWN, "-m", "300M"), 125, "differs in --memory")
        check_error(runner.sh("true", "-p", "join" + OWN, "--pids", "9"), 125, "cannot have --pids")
        name, other = "join" + OWN, "other" + OWN
        for verb in (
            ("delete", name),
            ("rename", name, other),
            ("lock", name),
            ("reset", name),
        ):
            check_error(runner("profile", *verb), 125, "in use")
        (shown,) = (
            one for one in json.loads(runner("profile", "list", "--json").stdout) if OWN in one["name"]
        )
        assert shown["state"] == "running"
        assert shown["domain"]
        assert shown["domain"].encode() in runner("profile", "show", "join" + OWN).stdout
        first.communicate(b"")
        assert first.returncode == 0


def test_two_that_start_at_once(runner: Runner) -> None:
    """Of two runs that begin together one has the profile and the other joins it, whichever it is."""
    with profile(runner, "both" + OWN):
        script = "echo $$; sleep 0.2; while ! test -e ~/end; do sleep 0.1; done"
        two = [runner.popen("-p", "both" + OWN, "sh", "-c", script) for _ in range(2)]
        for one in two:
            assert one.stdout is not None
            assert one.stdout.readline().strip().isdigit()
        run(runner, "touch ~/end", "-p", "both" + OWN)
        assert [one.wait() for one in two] == [0, 0]
        for one in two:
            one.communicate()


def test_differences_and_taking_them_back(runner: Runner) -> None:
    """What was added, changed and deleted is listed, and nothing else; taken back it is as on the host."""
    script = (
        "echo new > /etc/new; echo more >> /usr/share/doc/base-files/README; rm /etc/ld.so.cache;"
        " rm -r /usr/share/doc/bash; mkdir /usr/share/doc/bash; touch /usr/bin/env; printf x > '/srv/a\033\nb'"
    )
    with profile(runner, "diff" + OWN) as place:
        run(runner, script, "--privileged", "-p", "diff" + OWN)
        said = json.loads(runner("profile", "diff", "--json", "diff" + OWN).stdout)
        found = {one["path"]: (one["kind"], one["size"]) for one in said}
        assert found.pop("/etc/new") == ("added", 4)
        assert found.pop("/etc/ld.so.cache") == ("deleted", 0)
        assert found.pop("/usr/share/doc/base-files/README")[0] == "changed"
        assert found.pop("/srv/a\033\nb") == ("added", 1)
        assert found.pop("/usr/share/doc/bash/copyright") == ("deleted", 0)
        # A home as it was made is no difference, and neither is a file of which only the time was changed.
        assert {path.rpartition("/")[0] for path in found} == {"/usr/share/doc/bash"}
        shown = runner("profile", "diff", "diff" + OWN, "/srv").stdout
        assert shown.split() == [b"added", b"1", b"B", b"/srv/a\\x1b\\nb"]
        assert is_clean(place / "disk.img")
        for path in ("/etc/ld.so.cache", "/usr/share/doc/bash"):
            assert runner("profile", "reset", "diff" + OWN, path).returncode == 0
        check_error(runner("profile", "reset", "diff" + OWN, "/etc/absent"), 125, "nothing was changed")
        check_error(runner("profile", "reset", "diff" + OWN, "etc/../new"), 125, "no absolute path")
        assert run(
            runner, "ls /etc/ld.so.cache /usr/share/doc/bash/copyright; cat /etc/new", "-p", "diff" + OWN
        ) == (b"/etc/ld.so.cache\n/usr/share/doc/bash/copyright\nnew\n")
        assert runner("profile", "reset", "diff" + OWN).returncode == 0
        assert json.loads(runner("profile", "diff", "--json", "diff" + OWN).stdout) == []
        assert is_clean(place / "disk.img")


def test_a_copy_a_lock_and_a_larger_disk(runner: Runner) -> None:
    """A clone goes its own way, a locked profile is left alone, a disk grows with what is on it and never shrinks."""
    with profile(runner, "one" + OWN, "--size", "64M") as place:
        run(runner, "echo kept > ~/file", "-p", "one" + OWN)
        assert runner("profile", "clone", "one" + OWN, "two" + OWN).returncode == 0
        run(runner, "echo other > ~/file", "-p", "two" + OWN)
        assert run(runner, "cat ~/file", "-p", "one" + OWN) == b"kept\n"
        assert runner("profile", "delete", "two" + OWN).returncode == 0
        assert runner("profile", "lock", "one" + OWN).returncode == 0
        check_error(
            runner.sh("true", "-p", "one" + OWN), 125, f"the profile one{OWN} is locked", f"unlock one{OWN}"
        )
        name = "one" + OWN
        for verb in (("delete", name), ("rename", name, "x"), ("reset", name), ("resize", name, "1G")):
            check_error(runner("profile", *verb), 125, "is locked")
        assert runner("profile", "diff", "one" + OWN).returncode == 0
        assert runner("profile", "unlock", "one" + OWN).returncode == 0
        check_error(runner("profile", "resize", "one" + OWN, "32M"), 125)
        check_error(runner("profile", "resize", "one" + OWN), 125, "no size")
        assert runner("profile", "resize", "one" + OWN, "200M").returncode == 0
        check_error(runner("profile", "resize", "one" + OWN, "100M"), 125, "cannot become smaller")
        size = int(run(runner, "stat -f -c %b / && cat ~/file > /dev/null", "-p", "one" + OWN))
        assert size > 150 << 8
        assert is_clean(place / "disk.img")


def test_no_process_of_the_host_opens_the_disk(runner: Runner) -> None:
    """While a profile is used only its disk's own process has its image open, beside the supervisor that locks it."""
    with profile(runner, "apart" + OWN) as place:
        left = runner.popen("-p", "apart" + OWN, "sh", "-c", "echo go; cat", stdin=subprocess.PIPE)
        assert left.stdout is not None
        assert left.stdout.readline() == b"go\n"
        assert opened_by(place / "disk.img") == {"cloche-disk", supervisor_name(left.pid)}
        with (place / "disk.img").open("rb"):
            # The twin: somebody who has it open is seen.
            assert Path(f"/proc/{os.getpid()}/comm").read_text().strip() in opened_by(place / "disk.img")
        left.communicate(b"")


def supervisor_name(pid: int) -> str:
    """Return what the kernel calls a process."""
    return Path(f"/proc/{pid}/comm").read_text().strip()


def opened_by(path: Path) -> set[str]:
    """Return the names of the processes that have a file open, as far as they can be seen."""
    status = path.stat()
    names = set()
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            for fd in (directory / "fd").iterdir():
                found = fd.stat()
                if (found.st_dev, found.st_ino) == (status.st_dev, status.st_ino):
                    names.add((directory / "comm").read_text().strip())
        except OSError:
            continue
    return names


def test_what_goes_on_from_a_profile_has_a_copy(runner: Runner) -> None:
    """A fork of a profile's domain goes its own way, and the profile is what its own domain has left."""
    name, fork = "origin" + OWN, "fork" + OWN
    with profile(runner, name) as place:
        started = runner(
            "run", "-d", "--name", name, "-p", name, "--", "sh", "-c", "echo 1 > ~/file; tail -f /dev/null"
        )
        assert started.returncode == 0, started.stderr
        try:
            forked = runner("fork", name, "--name", fork)
            assert forked.returncode == 0, forked.stderr
            assert runner("exec", fork, "sh", "-c", "cat ~/file; echo fork > ~/file").stdout == b"1\n"
            assert runner("exec", name, "sh", "-c", "echo 2 >> ~/file").returncode == 0
            assert runner("profile", "show", name).stdout.startswith(b"state      running ")
        finally:
            for one in (fork, name):
                runner("stop", "-t", "0", one)
                runner("rm", one)
        assert run(runner, "cat ~/file", "-p", name) == b"1\n2\n"
        assert is_clean(place / "disk.img")
