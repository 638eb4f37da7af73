"""Programs that join a running domain, and terminals that are lent to a detached one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from support.domains import OWN, domain_processes
from support.pty import TerminalProgram
from support.wardens import PATIENCE_S, wait_dead

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.runs import Runner

#: A command line that does not tell the supervisor of its terminal's mode.
MUTANT = """
import sys
sys.path.insert(0, {source!r})
from cloche.cli import joined
joined._Keeper.raw = lambda *_: None
from cloche.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module", params=["ordinary", "caller"])
def runner(request: pytest.FixtureRequest) -> Runner:
    """Provide cloche as both run it."""
    runner: Runner = request.getfixturevalue("cloche" if request.param == "ordinary" else "cloche_as_caller")
    return runner


@contextmanager
def detached(runner: Runner, name: str, *words: str) -> Iterator[str]:
    """Provide a detached domain; it is ended and forgotten afterwards."""
    started = runner("run", "-d", "--name", name, *words)
    assert started.returncode == 0, started.stderr
    try:
        yield name
    finally:
        runner("stop", "-t", "0", name)
        runner("rm", name)


@pytest.fixture(scope="module")
def domain(runner: Runner) -> Iterator[str]:
    """Provide a domain that runs until the last of these tests has ended."""
    with detached(runner, "joined" + OWN, "--env", "HAS=it", "-w", "/tmp", "--", "sleep", "3600") as name:
        yield name


def running(runner: Runner, name: str) -> int:
    """Return how many programs run in a domain."""
    rows = json.loads(runner("ps", "--json").stdout)
    return next(int(one["programs"]) for one in rows if one["name"] == name)


def test_streams_status_and_what_is_inherited(runner: Runner, domain: str) -> None:
    """Both streams, any status, environment and directory of the domain's own program, and what the options change."""
    done = runner(
        "exec", domain, "--", "sh", "-c", "cat; echo $HAS; pwd; echo err >&2; exit 42", input=b"in\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (42, b"in\nit\n/tmp\n", b"err\n")
    options = ("--env", "HAS=more", "-w", "/usr", "-u", "root")
    done = runner("exec", *options, domain, "sh", "-c", "echo $HAS $HOME $USER; pwd; id -u; kill -9 $$")
    assert (done.returncode, done.stdout) == (137, b"more /root root\n/usr\n0\n")
    user = runner.user.entry
    assert runner("exec", domain, "id", "-un").stdout.decode() == f"{user.pw_name}\n"
    assert runner("exec", domain, "no-such-program").returncode == 127
    assert runner("exec", domain, "/tmp").returncode == 126
    assert runner("exec", "-w", "/no/such", domain, "true").returncode == 127
    assert b"knows no user" in runner("exec", "-u", "stranger", domain, "true").stderr
    assert runner("exec", domain).returncode == 125
    assert runner("shell", domain, input=b"id -u; pwd; exit 5\n").stdout == b"0\n/root\n"


def test_bytes_pass_exactly_and_one_file_keeps_its_order(
    runner: Runner, domain: str, tmp_path: object
) -> None:
    """Megabytes in and out at once; stdout and stderr into one pipe stay in the order in which they were written."""
    data = os.urandom(3 << 20)
    assert runner("exec", domain, "cat", input=data).stdout == data
    script = "for i in 1 2 3 4 5 6 7 8 9; do echo o$i; echo e$i >&2; done"
    merged = runner.popen("exec", domain, "sh", "-c", script, stderr=subprocess.STDOUT)
    assert merged.communicate()[0].split() == [
        b"%s%d" % (kind, n) for n in range(1, 10) for kind in (b"o", b"e")
    ]
    many = [f"{number:0100}" for number in range(4000)]
    echoed = runner("exec", domain, "sh", "-c", 'printf "%s\\n" "$@"', "sh", *many)
    assert echoed.stdout.decode().split() == many


def test_a_closed_output_is_seen_by_its_reader_and_signals_reach_the_program(
    runner: Runner, domain: str
) -> None:
    """The reader gets its end of file while the program runs on; a signal to the client is the program's."""
    script = "exec >&-; trap 'exit 9' TERM; echo ready >&2; while :; do sleep 0.1; done"
    joined = runner.popen("exec", domain, "sh", "-c", script)
    with joined:
        assert joined.stdout is not None
        assert joined.stderr is not None
        assert joined.stderr.readline() == b"ready\n"
        assert joined.stdout.read() == b""
        joined.send_signal(signal.SIGTERM)
        assert joined.wait(timeout=60) == 9


def test_a_terminal_as_in_a_run(runner: Runner, domain: str) -> None:
    """Size and its changes, raw mode and back, Ctrl-C for the program, Ctrl-Z for the shell on the host."""
    with TerminalProgram(runner.user, ["env", "PS1=next> ", "dash", "-i"], rows=33, cols=99) as on:
        on.expect(b"next> ")
        before = on.mode()
        script = "trap \"stty size; echo wi''nch\" WINCH; trap \"echo ctrl''c\" INT; stty size; "
        script += "while :; do read x; done"
        on.type(f"{runner.program} exec {domain} sh -c '{script}'\r".encode())
        on.expect(b"33 99\r\n")
        assert on.mode() != before
        on.resize(44, 88)
        on.expect(b"44 88\r\n")
        on.expect(b"winch")
        on.type(b"\x03")
        on.expect(b"ctrlc")
        on.type(b"\x1a")
        on.expect(b"next> ")
        assert on.mode() == before
        on.type(b"echo on the ho''st; fg\r")
        on.expect(b"on the host")
        # Keys that come before the client has the terminal again are the shell's.
        while on.mode() == before:
            pass
        on.type(b"\x03")
        on.expect(b"ctrlc")
        on.type(b"\x1c")
        on.expect(b"next> ")
        assert on.mode() == before
        on.type(b"exit\r")
        on.wait()


def modes_around_a_kill(runner: Runner, domain: str, program: str) -> tuple[list[object], ...]:
    """Kill a client that has a terminal; return the terminal's mode before, in and after it."""
    with TerminalProgram(runner.user, ["env", "PS1=next> ", "dash", "-i"]) as on:
        on.expect(b"next> ")
        before = on.mode()
        on.type(f"{program} exec {domain} sh -c 'echo rea\"\"dy; exec sleep 3600'\r".encode())
        on.expect(b"ready")
        within = on.mode()
        client = os.tcgetpgrp(on.master)
        pidfd = os.pidfd_open(client)
        os.kill(client, signal.SIGKILL)
        assert wait_dead([pidfd], PATIENCE_S) == []
        os.close(pidfd)
        # Answered by the supervisor after it has heard of the death, whose program has then ended: SIGHUP.
        while running(runner, domain) > 1:
            pass
        after = on.mode()
        on.type(b"exit\n")
        on.wait()
    return before, within, after


def test_a_killed_client_takes_its_program_along_and_leaves_the_terminal_as_it_was(
    runner: Runner, domain: str
) -> None:
    """The supervisor does for it what it cannot do any more."""
    before, within, after = modes_around_a_kill(runner, domain, runner.program)
    assert within != before
    assert after == before


def test_without_a_word_to_the_supervisor_the_terminal_stays_raw(runner: Runner, domain: str) -> None:
    """The twin: a client that does not tell of its terminal leaves it raw."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as mutant:
        mutant.write(MUTANT.format(source=str(runner.user.project / "src")))
        mutant.flush()
        os.chmod(mutant.name, 0o644)
        before, within, after = modes_around_a_kill(runner, domain, f"/usr/bin/python3 -IS {mutant.name}")
    assert within != before
    assert after == within


def test_the_death_of_the_domain_ends_the_client(runner: Runner) -> None:
    """Terminal and status are in order, and the reason is said."""
    with (
        detached(runner, "dying" + OWN, "--", "sleep", "3600") as name,
        TerminalProgram(runner.user, ["env", "PS1=next> ", "dash", "-i"]) as on,
    ):
        on.expect(b"next> ")
        before = on.mode()
        on.type(f"{runner.program} exec {name} sh -c 'echo rea\"\"dy; exec sleep 3600'\r".encode())
        on.expect(b"ready")
        rows = json.loads(runner("ps", "--json").stdout)
        os.kill(next(one["warden"] for one in rows if one["name"] == name), signal.SIGKILL)
        on.expect(b"has ended before the program")
        on.expect(b"next> ")
        assert on.mode() == before
        on.type(b"echo =$?=\r")
        on.expect(b"=125=")


def test_a_domain_lives_as_long_as_its_last_program(runner: Runner) -> None:
    """Its own program's status is known while another goes on; the machine goes with that one."""
    with detached(runner, "last" + OWN, "--", "sh", "-c", "read x; exit 4") as name:
        # No input: the read ends at once, and it may have ended before anything joins.
        done = runner("wait", name)
        assert done.returncode == 4
    with detached(runner, "last" + OWN, "--", "sleep", "3600") as name:
        joined = runner.popen("exec", name, "sh", "-c", "echo in; read x; exit 3", stdin=subprocess.PIPE)
        with joined:
            assert joined.stdout is not None
            assert joined.stdout.readline() == b"in\n"
            assert runner("kill", name).returncode == 0
            assert runner("wait", name).returncode == 137
            assert running(runner, name) == 1
            assert runner("exec", name, "true").returncode == 0
            joined.communicate(b"\n", timeout=60)
            assert joined.returncode == 3
        assert runner("wait", name).returncode == 137
        assert b"you have no running domain" in runner("exec", name, "true").stderr


@pytest.mark.long
def test_a_join_at_the_end_is_served_or_told_so(runner: Runner) -> None:
    """However the two meet: its output is whole and its status 0, or the sentence is said; nobody waits for ever."""
    outcomes = set()
    for attempt in range(12):
        with detached(
            runner, f"race-{attempt}{OWN}", "--interactive", "--", "sh", "-c", "sleep 0.0$0", str(attempt)
        ) as name:
            crowd = [runner.popen("exec", name, "seq", "3") for _ in range(4)]
            for one in crowd:
                out, err = one.communicate(timeout=60)
                if one.returncode == 0:
                    assert (out, err) == (b"1\n2\n3\n", b"")
                else:
                    assert one.returncode == 125, err
                    assert out == b""
                    assert b"has ended" in err or b"you have no running domain" in err
                outcomes.add(one.returncode)
    assert outcomes


def test_attached_and_detached(runner: Runner) -> None:
    """A terminal is lent, gives input, is given back with Ctrl-], and the program goes on and logs all of it."""
    script = 'stty -echo; echo start; while read line; do echo "got $line $(stty size)"; done'
    with detached(runner, "attached" + OWN, "--tty", "--", "sh", "-c", script) as name:
        for number, rows in ((1, 31), (2, 41)):
            with TerminalProgram(runner.user, ["env", "PS1=next> ", "dash", "-i"], rows=rows, cols=77) as on:
                on.expect(b"next> ")
                before = on.mode()
                on.type(f"{runner.program} attach {name}\r".encode())
                on.expect(b"Ctrl-] leaves")
                on.type(f"line{number}\r".encode())
                on.expect(f"got line{number} {rows} 77".encode())
                other = runner("attach", name)
                assert (other.returncode, b"somebody is attached" in other.stderr) == (125, True)
                on.type(b"\x1d")
                on.expect(b"next> ")
                assert on.mode() == before
                on.type(b"exit\r")
                on.wait()
        logged = runner("logs", name).stdout
        assert b"got line1 31 77" in logged
        assert b"got line2 41 77" in logged


def test_attached_without_a_terminal(runner: Runner) -> None:
    """Pipes are lent as well: input passes in with its end, output comes out, and the status is the program's."""
    with detached(
        runner, "piped" + OWN, "--interactive", "--", "sh", "-c", "cat; echo err >&2; exit 6"
    ) as name:
        done = runner("attach", name, input=b"a\nb\n" * 50000)
        assert (done.returncode, done.stdout, done.stderr) == (6, b"a\nb\n" * 50000, b"err\n")
        assert runner("logs", name).stdout == b"a\nb\n" * 50000
    process = runner.popen(
        "run", "--name", "foreground" + OWN, "--", "sh", "-c", "echo up; read x", stdin=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        refused = runner("attach", "foreground" + OWN)
        assert (refused.returncode, b"cannot be attached to" in refused.stderr) == (125, True)
        assert runner("exec", "foreground" + OWN, "echo", "beside").stdout == b"beside\n"
        process.communicate(b"\n")


def test_a_client_that_does_not_read_holds_the_program_until_it_goes(runner: Runner) -> None:
    """Nothing is lost: the log has every byte, and the program ends when the client has gone."""
    script = "read go; head -c 3000000 /dev/zero | tr '\\0' x; echo; echo last"
    with detached(runner, "slow" + OWN, "--interactive", "--", "sh", "-c", script) as name:
        client = runner.popen("attach", name, stdin=subprocess.PIPE)
        with client:
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(b"go\n")
            client.stdin.flush()
            assert client.stdout.read(1) == b"x"
            assert running(runner, name) == 1
            client.kill()
            client.communicate()
        assert runner("wait", name).returncode == 0
        assert runner("logs", name).stdout == b"x" * 3_000_000 + b"\nlast\n"


def test_a_foreground_run_waits_for_those_who_have_joined(runner: Runner) -> None:
    """It says so, and ends with its own program's status."""
    process = runner.popen(
        "run", "--name", "host" + OWN, "--", "sh", "-c", "echo up; read x; exit 8", stdin=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"up\n"
        # Another job than the first one's: the two ends of a pipeline need not be told of each other.
        words = ["setsid", runner.program, "exec", "host" + OWN, "sh", "-c", "echo in; read x"]
        joined = runner.user.popen(words, stdin=subprocess.PIPE)
        assert joined.stdout is not None
        assert joined.stdout.readline() == b"in\n"
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert b"1 that joined it still run" in process.stderr.readline()
        joined.communicate(b"\n", timeout=60)
        assert process.wait(60) == 8
        assert not domain_processes(process.pid)
