"""A program on the caller's terminal: raw mode and back, size, keys, job control."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from support.domains import kill_part
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
        # Without -f a job that is still stopped for a moment is not waited for, and the shell does not end then.
        on.type(b"kill %1; wait -f %1; echo $((40 + 2))\r")
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


def test_password_prompts_of_programs(cloche: Runner) -> None:
    """The prompts of ``read -s`` and ``su`` show nothing of what is typed, and it reaches the program."""
    with TerminalProgram(
        cloche.user,
        [cloche.program, "bash", "-c", "read -s -p 'word: ' x; echo; echo got ${#x}; su -c id root"],
    ) as on:
        on.expect(b"word: ")
        on.type(b"hunter2\r")
        assert b"hunter2" not in on.expect(b"got 7")
        on.expect(b"Password: ")
        on.type(b"hunter2\r")
        assert b"hunter2" not in on.expect(b"su: Authentication failure")
        assert on.wait() == 1


def test_less(cloche: Runner) -> None:
    """Less draws its page, takes keys one by one, and ends at q."""
    with TerminalProgram(cloche.user, [cloche.program, "less", "/usr/share/common-licenses/GPL-3"]) as on:
        on.expect(b"GNU GENERAL PUBLIC LICENSE")
        on.type(b"G")
        on.expect(b"(END)")
        on.type(b"q")
        assert on.wait() == 0


def test_vim(cloche: Runner) -> None:
    """Vim draws the whole screen, follows a change of its size, takes keys and writes the file."""
    script = "vim.tiny -u NONE -N file; cat file"
    with TerminalProgram(cloche.user, [cloche.program, "sh", "-c", script]) as on:
        on.expect(b"\x1b[?1049h")  # the other screen
        on.expect(b"~")
        on.resize(40, 90)
        # It has heard of it and draws anew: what is typed in the same moment it would take first, on the host as well.
        on.expect(b"\x1b[39;1H")
        on.type(b":set columns? lines?\r")
        on.expect(b"columns=90")
        on.expect(b"lines=40")
        on.type(b"\r")
        on.type(b"iglass bell\x1b")
        on.type(b":wq\r")
        on.expect(b"\x1b[?1049l")
        on.expect(b"glass bell\r\n")
        assert on.wait() == 0


def test_full_screen_program_is_stopped_and_goes_on(cloche: Runner) -> None:
    """Ctrl-Z in vim gives the shell outside its terminal back as it was, and fg draws vim's screen again."""
    with TerminalProgram(cloche.user, ["bash", "--norc", "-i"]) as on:
        on.expect(b"$ ")
        on.type(f"{cloche.program} vim.tiny -u NONE -N /tmp/file\r".encode())
        on.expect(b"\x1b[?1049h")
        on.type(b"ifirst\x1b")
        on.expect(b"first")
        on.type(b"\x1a")
        on.expect(b"Stopped")
        on.expect(b"$ ")
        on.type(b"stty | grep -c -- -echo; echo $((40 + 2)) outside\r")
        on.expect(b"0\r\n42 outside")
        on.expect(b"$ ")
        on.type(b"fg\r")
        on.expect(b"\x1b[?1049h")
        on.expect(b"first")
        on.type(b":q!\r")
        on.expect(b"\x1b[?1049l")
        on.expect(b"$ ")
        on.type(b"exit\r")
        assert on.wait() == 0


def test_tmux(cloche: Runner) -> None:
    """Tmux runs a shell on a terminal of its own, on the caller's; its keys and its end work."""
    with TerminalProgram(cloche.user, [cloche.program, "tmux", "-f", "/dev/null", "new-session", "sh"]) as on:
        on.expect(b"\x1b[?1049h")
        on.expect(b"$ ")
        on.type(b"tty; echo word$((40 + 2))\r")
        on.expect(b"/dev/pts/")
        on.expect(b"word42")
        on.type(b"\x02c")  # a second window
        on.expect(b"1:sh*")
        on.type(b"exit\r")
        on.expect(b"0:sh*")
        on.type(b"exit\r")
        on.expect(b"[exited]")
        assert on.wait() == 0


def test_script(cloche: Runner) -> None:
    """Script records a session on a terminal of its own and passes the status on."""
    script = (
        "script -q -e -c 'tty; echo recorded; exit 5' /tmp/typescript; echo status $?; cat /tmp/typescript"
    )
    with TerminalProgram(cloche.user, [cloche.program, "sh", "-c", script]) as on:
        on.expect(b"/dev/pts/")
        on.expect(b"recorded\r\n")
        on.expect(b"status 5")
        on.expect(b"recorded\r")
        assert on.wait() == 0


@pytest.mark.parametrize("victim", ["qemu-system-x86", "cloche-warden"])
def test_mode_is_restored_when_a_part_is_killed(cloche: Runner, victim: str) -> None:
    """The terminal's mode comes back, and the reason begins at the left edge, when the machine dies under a program."""
    with TerminalProgram(cloche.user, [cloche.program, "sh", "-c", "echo ready; read x"]) as on:
        before = on.mode()
        on.expect(b"ready")
        assert on.mode() != before
        kill_part(on.process.pid, victim)
        on.expect(b"\ncloche: the ")
        assert on.wait() == 125
        assert on.mode() == before


@pytest.mark.parametrize("words, status", [(["no-such-program"], 127), (["--timeout", "1s", "cat"], 124)])
def test_mode_is_restored_after_errors(cloche: Runner, words: list[str], status: int) -> None:
    """The terminal's mode comes back after an error at the program's start and at its time limit."""
    with TerminalProgram(cloche.user, [cloche.program, *words]) as on:
        before = on.mode()
        on.expect(b"cloche: ")
        assert on.wait() == status
        assert on.mode() == before


def test_a_job_in_the_background_runs(cloche: Runner) -> None:
    """With `&`, and with Ctrl-Z and `bg`, the program goes on; `fg` gives it the terminal."""
    with TerminalProgram(cloche.user, ["bash", "--norc", "-i"]) as on:
        on.expect(b"$ ")
        on.type(f"{cloche.program} sh -c 'echo in the ba\"\"ck; read x; echo got $x' &\r".encode())
        on.expect(b"in the back")
        on.type(b"jobs\r")
        on.expect(b"Running")
        on.type(b"fg\r")
        on.expect(b"sh -c")
        on.type(b"word\r")
        on.expect(b"got word")
        on.expect(b"$ ")
        on.type(f"{cloche.program} sh -c 'echo rea\"\"dy; read x; echo got $x'\r".encode())
        on.expect(b"ready")
        on.type(b"\x1a")
        on.expect(b"Stopped")
        on.type(b"bg\r")
        on.expect(b"&")
        on.type(b"jobs\r")
        on.expect(b"Running")
        on.type(b"fg\r")
        on.expect(b"sh -c")
        on.type(b"other\r")
        on.expect(b"got other")
        on.expect(b"$ ")
        on.type(b"exit\r")
        assert on.wait() == 0


def test_stderr_can_go_elsewhere(cloche: Runner) -> None:
    """With a terminal and `2>file`, errors go to the file and nowhere else."""
    script = f"{cloche.program} sh -c 'tty; echo out; echo err >&2' 2>errors; echo file $(cat errors)"
    with TerminalProgram(cloche.user, ["sh", "-c", script]) as on:
        on.expect(b"/dev/pts/")
        shown = on.expect(b"file err")
        assert shown.count(b"err") == 1
        on.wait()
