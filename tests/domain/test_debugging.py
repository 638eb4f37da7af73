"""What helps to find out why: --boot-log, --agent-log, --strace, --shell-on-failure, --timings."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from support.pty import TerminalProgram
from support.traces import check_events, names_of_rows

if TYPE_CHECKING:
    from pathlib import Path

    from support.runs import Runner


def test_boot_log(cloche: Runner) -> None:
    """--boot-log shows the guest kernel's messages as lines of cloche's own, and the program's output stays pure."""
    done = cloche("--boot-log", "echo", "out")
    assert (done.returncode, done.stdout) == (0, b"out\n")
    lines = done.stderr.decode().splitlines()
    assert any("Linux version" in line for line in lines)
    assert all(line.startswith("cloche: ") for line in lines)
    assert b"Linux version" not in cloche("true").stderr


def test_agent_log(cloche: Runner) -> None:
    """--agent-log shows what the agent has to say, as lines of cloche's own, and changes nothing else."""
    done = cloche("--agent-log", "sh", "-c", "echo out; exit 3")
    assert (done.returncode, done.stdout) == (3, b"out\n")
    lines = done.stderr.decode().splitlines()
    assert all(line.startswith("cloche: agent: ") for line in lines), lines


def test_timings_and_their_trace(cloche: Runner, folder: Path) -> None:
    """--timings=FILE shows the waterfall and writes what a browser's trace viewer opens, the guest's steps in it."""
    trace = folder / "trace.json"
    done = cloche(f"--timings={trace}", "sh", "-c", "exit 3")
    assert (done.returncode, done.stdout) == (3, b"")
    assert b"guest set up" in done.stderr
    events = json.loads(trace.read_text())["traceEvents"]
    check_events(events)
    assert {"cloche", "vmm", "fs-system", "guest"} <= set(names_of_rows(events))
    assert {"plan", "memory filled", "until the agent answers", "program"} <= {one["name"] for one in events}
    refused = cloche(f"--timings={folder}/none/trace.json", "true")
    assert (refused.returncode, b"trace cannot be written" in refused.stderr) == (125, True)


def test_strace(cloche: Runner) -> None:
    """--strace shows the program's system calls on stderr; its output and its status stay its own."""
    done = cloche("--strace", "sh", "-c", "(exit 4); echo traced; exit 3")
    assert (done.returncode, done.stdout) == (3, b"traced\n")
    assert b"execve(" in done.stderr
    assert b'write(1, "traced\\n", 7' in done.stderr
    assert b"+++ exited with 4 +++" in done.stderr  # its children's, too


def test_strace_of_a_program_killed_by_a_signal(cloche: Runner) -> None:
    """With --strace, too, a signal's status is 128 and its number."""
    assert cloche("--strace", "sh", "-c", "kill -TERM $$").returncode == 143


def test_shell_on_failure(cloche: Runner) -> None:
    """A failed program leaves a shell in its machine; the run ends with the program's status."""
    words = [cloche.program, "--shell-on-failure", "sh", "-c", "echo left > /tmp/trace; exit 3"]
    with TerminalProgram(cloche.user, words) as on:
        before = on.mode()
        on.expect(b"ended with status 3")
        on.expect(b"$ ")
        on.type(b"cat /tmp/trace; tty; exit 0\r")
        on.expect(b"left\r\n")
        on.expect(b"/dev/pts/")
        assert on.wait() == 3
        assert on.mode() == before


def test_shell_on_failure_is_not_opened_after_success(cloche: Runner) -> None:
    """A program that succeeds ends the run."""
    with TerminalProgram(cloche.user, [cloche.program, "--shell-on-failure", "echo", "fine"]) as on:
        on.expect(b"fine")
        assert on.wait() == 0


def test_shell_on_failure_needs_a_terminal(cloche: Runner) -> None:
    """Where there is no terminal that is said, and the status is the program's."""
    done = cloche("--shell-on-failure", "sh", "-c", "exit 3")
    assert done.returncode == 3
    assert b"needs a terminal" in done.stderr
