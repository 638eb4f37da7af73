"""The look for left-over processes tells this session's from everybody else's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from support.leaks import SESSION, Process, leaked, processes, wait_for_end

INIT, SHELL, PYTEST = Process(1, 0, "init", 1), Process(10, 1, "bash", 2), Process(20, 10, "pytest", 3)
BEFORE = {process.pid: process for process in (INIT, SHELL, PYTEST)}


def table(*more: Process) -> dict[int, Process]:
    """Return the process table of the session with some more processes in it."""
    return {**BEFORE, **{process.pid: process for process in more}}


@pytest.mark.parametrize(
    "left",
    [
        (Process(30, 20, "qemu-system-x86", 5),),
        (Process(30, 1, "cloche-warden", 5),),
        (Process(30, 1, "python3", 5), Process(31, 30, "cloche-warden", 6), Process(32, 31, "cloche-fs", 7)),
        (Process(30, 10, "cloche", 5),),
    ],
    ids=["child", "orphan of init", "branch of an orphaned supervisor", "orphan of an adopter above pytest"],
)
def test_left_processes_are_found(left: tuple[Process, ...]) -> None:
    """What descends from pytest, and an orphan younger than the session, is left over."""
    expected = [process for process in left if process.name != "python3"]
    assert leaked(BEFORE, table(*left), PYTEST.pid) == expected


@pytest.mark.parametrize(
    "others",
    [
        (Process(30, 1, "cloche-warden", 5), "before"),
        (Process(30, 1, "bash", 5), Process(31, 30, "cloche-warden", 6)),
        (Process(30, 20, "sleep", 5),),
    ],
    ids=["older than the session", "somebody else's shell has it", "no program of a domain"],
)
def test_other_peoples_processes_are_not_found(others: tuple[Process | str, ...]) -> None:
    """What was there before, what hangs below somebody else's shell, and other programs are not left over."""
    rows = [row for row in others if isinstance(row, Process)]
    before = table(*rows) if "before" in others else BEFORE
    assert leaked(before, table(*rows), PYTEST.pid) == []


def test_a_detached_domain_of_another_session_is_that_ones() -> None:
    """What hangs below init and names another session in its environment, or as a command line none, is not ours."""
    argv = [sys.executable, "-S", "-c", "input()"]
    for session, name, found in (
        ("1", "cloche", False),
        (str(PYTEST.pid), "cloche", True),
        ("", "cloche", False),
        ("", "python3", True),
    ):
        env = {SESSION: session} if session else {}
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env) as other:
            assert other.stdin is not None
            top = Process(other.pid, 1, name, processes()[other.pid].start)
            row = Process(9_999_999, other.pid, "cloche-warden", 7)
            assert (row in leaked(BEFORE, table(top, row), PYTEST.pid)) is found
            other.stdin.close()


def test_reused_id_is_another_process() -> None:
    """A young process with the id of an old one is seen as young."""
    before = table(Process(30, 1, "cloche-warden", 4))
    young = Process(30, 1, "cloche-warden", 9)
    assert leaked(before, table(young), PYTEST.pid) == [young]


def test_table_has_this_process() -> None:
    """The table read from /proc knows this process, its parent and its name."""
    me = processes()[os.getpid()]
    assert me.parent == os.getppid()
    assert me.name


def test_wait_returns_what_does_not_end() -> None:
    """A process that ends is waited for, one that stays is returned when the time is up."""
    wait_for_input = [sys.executable, "-S", "-c", "input()"]
    with (
        subprocess.Popen(wait_for_input, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as ending,
        subprocess.Popen(wait_for_input, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as staying,
    ):
        candidates = [processes()[ending.pid], processes()[staying.pid]]
        ending.kill()
        assert wait_for_end(candidates, 0.2) == [candidates[1]]
        staying.kill()
        assert wait_for_end(candidates, 60) == []
