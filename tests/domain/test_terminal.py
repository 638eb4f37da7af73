"""A program on the caller's terminal: raw mode and back, size, keys, job control."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from support.pty import TerminalProgram

if TYPE_CHECKING:
    from support.runs import Runner


def test_terminal_is_a_terminal_with_its_size(cloche: Runner) -> None:
    """The program sees a terminal of the caller's size, and a change of it."""
    with TerminalProgram(
        cloche.user,
        [
            cloche.program,
            "sh",
            "-c",
            "trap 'stty size; exit 0' WINCH; tty; stty size; while :; do sleep 0.1; done",
        ],
    ) as on:
        on.expect(b"/dev/pts/")
        on.expect(b"30 100")
        on.resize(40, 120)
        on.expect(b"40 120")
        assert on.wait() == 0


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_mode_is_restored(cloche: Runner, end: str) -> None:
    """The terminal's mode is what it was, also when cloche is told to end."""
    with TerminalProgram(cloche.user, [cloche.program, "sh", "-c", "echo ready; read x; echo got $x"]) as on:
        before = on.mode()
        on.expect(b"ready")
        assert on.mode() != before
        if end == "exit":
            on.type(b"word\r")
            on.expect(b"got word")
        else:
            on.process.send_signal(signal.SIGTERM)
        on.wait()
        assert on.mode() == before


def test_control_c_reaches_the_program(cloche: Runner) -> None:
    """Ctrl-C interrupts the program in the guest, which may handle it."""
    with TerminalProgram(
        cloche.user,
        [
            cloche.program,
            "sh",
            "-c",
            "trap 'echo interrupted; exit 3' INT; echo ready; while :; do sleep 0.1; done",
        ],
    ) as on:
        on.expect(b"ready")
        on.type(b"\x03")
        on.expect(b"interrupted")
        assert on.wait() == 3


def test_control_z_and_fg(cloche: Runner) -> None:
    """Ctrl-Z stops the job, the shell has the terminal back, and fg goes on with it."""
    with TerminalProgram(cloche.user, ["bash", "--norc", "-i"]) as on:
        on.expect(b"$ ")
        on.type(f"{cloche.program} sh -c 'echo ready; read x; echo got $x'\r".encode())
        on.expect(b"ready\r\n")
        on.type(b"\x1a")
        on.expect(b"Stopped")
        on.type(b"echo $((40 + 2)) in the shell\r")
        on.expect(b"42 in the shell")
        on.type(b"fg\r")
        on.expect(b"sh -c")
        on.type(b"word\r")
        on.expect(b"got word")
        on.expect(b"$ ")  # what is typed before would be the program's
        on.type(b"exit\r")
        assert on.wait() == 0


def test_job_control_inside(cloche: Runner) -> None:
    """An interactive shell in the guest has job control."""
    with TerminalProgram(cloche.user, [cloche.program, "bash", "--norc", "-i"]) as on:
        on.expect(b"$ ")
        on.type(b"sh -c 'echo run$((1 + 1)); exec sleep 1000'\r")
        on.expect(b"run2")
        on.type(b"\x1a")
        on.expect(b"Stopped")
        on.type(b"kill %1; wait; echo $((40 + 2))\r")
        on.expect(b"42")
        on.type(b"exit\r")
        on.wait()


def test_password_prompt_does_not_echo(cloche: Runner) -> None:
    """A program that switches echo off is obeyed."""
    script = "import getpass; print('secret was', len(getpass.getpass('word: ')))"
    with TerminalProgram(cloche.user, [cloche.program, "python3", "-c", script]) as on:
        on.expect(b"word: ")
        on.type(b"hunter2\r")
        shown = on.expect(b"secret was 7")
        assert b"hunter2" not in shown


def test_no_tty_and_tty_force(cloche: Runner) -> None:
    """--no-tty takes the terminal away, --tty gives one where there is none."""
    with TerminalProgram(
        cloche.user, [cloche.program, "--no-tty", "sh", "-c", "tty; test -t 1 || echo none"]
    ) as on:
        on.expect(b"not a tty")
        on.expect(b"none")
        on.wait()
    done = cloche("--tty", "tty")
    assert done.stdout.startswith(b"/dev/pts/")


def test_full_screen_programs(cloche: Runner) -> None:
    """Less draws its page and ends at q."""
    with TerminalProgram(cloche.user, [cloche.program, "less", "/usr/share/common-licenses/GPL-3"]) as on:
        on.expect(b"GNU GENERAL PUBLIC LICENSE")
        on.type(b"q")
        assert on.wait() == 0


def test_stderr_can_go_elsewhere(cloche: Runner) -> None:
    """With a terminal and `2>file`, errors go to the file and nowhere else."""
    script = f"{cloche.program} sh -c 'tty; echo out; echo err >&2' 2>errors; echo file $(cat errors)"
    with TerminalProgram(cloche.user, ["sh", "-c", script]) as on:
        on.expect(b"/dev/pts/")
        shown = on.expect(b"file err")
        assert shown.count(b"err") == 1
        on.wait()
