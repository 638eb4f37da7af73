"""Detached domains: start, names, logs, waiting, stopping, and what is left when parts of them are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.domains import OWN, domain_processes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.runs import Runner

#: Runs until it is told to end, and says so.
LOYAL = 'echo out; echo err >&2; trap "echo bye; exit 7" TERM; while :; do sleep 0.1; done'


@pytest.fixture(scope="module", params=["ordinary", "caller"])
def runner(request: pytest.FixtureRequest) -> Runner:
    """Provide cloche as both run it."""
    runner: Runner = request.getfixturevalue("cloche" if request.param == "ordinary" else "cloche_as_caller")
    return runner


def listed(runner: Runner, name: str) -> dict[str, object]:
    """Return what `ps --all` says of the domain of this name that runs, else of the newest one that has ended."""
    rows = json.loads(runner("ps", "--all", "--json").stdout)
    found: list[dict[str, object]] = [one for one in rows if name in (one["name"], one["domain"])]
    return next((one for one in found if one["state"] != "ended"), found[-1])


@contextmanager
def detached(runner: Runner, name: str, script: str, *options: str, said: bytes = b"") -> Iterator[None]:
    """Provide a detached domain that runs a script of ``sh`` and has ``said`` something; it is ended and forgotten."""
    started = runner("run", "-d", "--name", name, *options, "--", "sh", "-c", script)
    assert (started.returncode, started.stdout) == (0, name.encode() + b"\n"), started.stderr
    try:
        if said:
            following = runner.popen("logs", "-f", name)
            assert following.stdout is not None
            assert following.stdout.readline() == said + b"\n"
            following.kill()
            following.communicate()
        yield
    finally:
        runner("stop", "-t", "0", name)
        while runner("rm", name).returncode == 0:
            pass  # a test may have had more than one of that name


def supervisor_of(runner: Runner, name: str) -> int:
    """Return the process id of a domain's supervisor: the parent of its warden."""
    status = Path(f"/proc/{listed(runner, name)['warden']}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid:"))


def test_a_whole_life(runner: Runner) -> None:
    """Start, list, log, rename, stop gracefully, wait, remove: under the name it was given."""
    with detached(runner, "whole" + OWN, LOYAL, said=b"out"):
        row = listed(runner, "whole" + OWN)
        assert (row["state"], row["detached"], row["programs"]) == ("running", True, 1)
        supervisor = supervisor_of(runner, "whole" + OWN)
        # A session of its own, no terminal, no stream of the caller's, no directory.
        fields = Path(f"/proc/{supervisor}/stat").read_text().rpartition(")")[2].split()
        assert (int(fields[3]), fields[4]) == (supervisor, "0")
        assert {os.readlink(f"/proc/{supervisor}/fd/{number}") for number in range(3)} == {"/dev/null"}
        assert os.readlink(f"/proc/{supervisor}/cwd") == "/"
        logs = runner("logs", "whole" + OWN)
        assert (logs.stdout, logs.stderr) == (b"out\n", b"err\n")
        assert runner("rename", "whole" + OWN, "entire" + OWN).returncode == 0
        again = runner("run", "-d", "--name", "entire" + OWN, "--", "true")
        assert (again.returncode, b"is called entire" in again.stderr) == (125, True)
        assert runner("stop", str(row["domain"])[:6]).returncode == 0
        assert runner("wait", "entire" + OWN).returncode == 7
        ended = listed(runner, "entire" + OWN)
        assert (ended["state"], ended["status"], ended["reason"]) == ("ended", 7, None)
        assert runner("logs", "entire" + OWN).stdout == b"out\nbye\n"
        assert runner("stop", "entire" + OWN).returncode == 125
        assert runner("rm", "entire" + OWN).returncode == 0
        assert b"you have no domain entire" in runner("wait", "entire" + OWN).stderr
        assert not domain_processes(supervisor)


def test_what_fails_at_the_start_is_told_by_the_start(runner: Runner) -> None:
    """No program, no kernel, a name that is none, an option for nobody: status and sentence as ever."""
    for words, status, said in (
        (("--", "no-such-program"), 127, b"was not found in the guest"),
        (("--kernel", "no-such-kernel", "--", "true"), 125, b"no-such-kernel"),
        (("--name", "a/b", "--", "true"), 125, b"cannot be a domain's name"),
        (("--shell-on-failure", "--", "true"), 125, b"nobody would see it"),
    ):
        done = runner("run", "-d", "--name", "never" + OWN, *words)
        assert (done.returncode, done.stdout) == (status, b""), done
        assert said in done.stderr
        assert b"Traceback" not in done.stderr
    assert f"never{OWN}".encode() not in runner("ps", "--all", "--json").stdout


def test_logs_follow_to_the_end_and_kill_and_wait_agree(runner: Runner) -> None:
    """Who follows gets every byte of both streams; a signal's status is 128 and its number, for all who wait."""
    script = "trap 'seq 5000; echo last >&2' USR1; echo ready; while :; do sleep 0.1; done"
    with detached(runner, "follow" + OWN, script):
        following = runner.popen("logs", "-f", "follow" + OWN)
        assert following.stdout is not None
        assert following.stdout.readline() == b"ready\n"
        waiting = [runner.popen("wait", "follow" + OWN) for _ in range(3)]
        assert runner("kill", "-s", "USR1", "follow" + OWN).returncode == 0
        numbers = b"".join(following.stdout.readline() for _ in range(5000))
        assert numbers.split() == [b"%d" % number for number in range(1, 5001)]
        assert runner("kill", "follow" + OWN).returncode == 0
        rest, errors = following.communicate(timeout=60)
        # The signal reached the whole group, so sh may have a word about its `sleep`.
        assert (rest, errors.splitlines()[-1], following.returncode) == (b"", b"last", 0)
        for one in waiting:
            one.communicate(timeout=60)
            assert one.returncode == 137
        assert runner("wait", "follow" + OWN).returncode == 137


def test_a_program_that_will_not_end_is_ended(runner: Runner) -> None:
    """After the grace the machine goes, and the record says why."""
    script = "trap '' TERM; echo ready; echo steady; echo go; while :; do sleep 0.1; done"
    with detached(runner, "deaf" + OWN, script, said=b"ready"):
        assert runner("stop", "--grace", "0.2", "deaf" + OWN).returncode == 0
        ended = listed(runner, "deaf" + OWN)
        assert (ended["state"], ended["status"]) == ("ended", 125)
        assert runner("logs", "-n", "2", "deaf" + OWN).stdout == b"steady\ngo\n"
        assert "did not end within 0.2 s" in str(ended["reason"])


@pytest.mark.parametrize("victim", ["supervisor", "warden", "vmm"])
def test_whatever_is_killed_the_registry_is_consistent(runner: Runner, victim: str) -> None:
    """The domain is gone with all its processes, is listed as ended, its name is free and its log is whole."""
    name = f"victim-{victim}{OWN}"
    with detached(runner, name, LOYAL, said=b"out"):
        supervisor = supervisor_of(runner, name)
        processes = domain_processes(supervisor)
        warden = int(str(listed(runner, name)["warden"]))
        vmm = next(pid for pid in processes if Path(f"/proc/{pid}/comm").read_text().startswith("qemu"))
        waiting = runner.popen("wait", name)
        os.kill({"supervisor": supervisor, "warden": warden, "vmm": vmm}[victim], signal.SIGKILL)
        _, said = waiting.communicate(timeout=60)
        assert waiting.returncode == 125, said
        assert runner("logs", name).stdout == b"out\n"
        row = listed(runner, name)
        assert (row["state"], row["status"]) == ("ended", None if victim == "supervisor" else 125)
        assert runner("run", "-d", "--name", name, "--", "true").returncode == 0
        runner("wait", name)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs two users")
def test_two_users_do_not_see_each_other(cloche: Runner, cloche_as_caller: Runner) -> None:
    """Each may use the same name, and lists, stops and reads only what is his; root's cloche is just another user's."""
    with (
        detached(cloche, "same" + OWN, "echo theirs; sleep 600", said=b"theirs"),
        detached(cloche_as_caller, "same" + OWN, "echo mine; sleep 600", said=b"mine"),
    ):
        theirs, mine = listed(cloche, "same" + OWN), listed(cloche_as_caller, "same" + OWN)
        assert theirs["domain"] != mine["domain"]
        for runner, own, other in ((cloche, theirs, mine), (cloche_as_caller, mine, theirs)):
            seen = {one["domain"] for one in json.loads(runner("ps", "-a", "--json").stdout)}
            assert (own["domain"] in seen, other["domain"] in seen) == (True, False)
            for verb in ("stop", "kill", "logs", "wait"):
                done = runner(verb, str(other["domain"]))
                assert (done.returncode, b"you have no" in done.stderr) == (125, True)
        assert cloche("logs", "same" + OWN).stdout == b"theirs\n"
        # Not by its socket, either: the directory is closed to others.
        place = subprocess.run(
            ["find", "/", "-xdev", "-name", str(mine["domain"]), "-type", "d"],
            capture_output=True,
            check=False,
        ).stdout.split()
        assert place
        for path in place:
            probe = cloche.user.run(["ls", path])
            assert probe.returncode != 0
