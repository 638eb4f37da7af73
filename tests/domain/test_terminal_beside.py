"""A terminal beside the program's stdin: pagers at the end of a pipe, and programs that leave the keys to others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.pty import TerminalProgram

if TYPE_CHECKING:
    from pathlib import Path

    from support.runs import Runner


def shell(cloche: Runner, script: str) -> TerminalProgram:
    """Run a script of the host's shell on a terminal; ``CLOCHE`` in it is cloche."""
    return TerminalProgram(cloche.user, ["sh", "-c", script.replace("CLOCHE", cloche.program)])


def page(on: TerminalProgram) -> None:
    """Use a pager that shows the numbers up to 500: it waits for keys, and takes them one by one."""
    on.expect(b"\r\n25\r\n")
    on.type(b"G")
    on.expect(b"\r\n500\r\n")
    on.expect(b"(END)")
    on.type(b"q")


@pytest.mark.parametrize(
    "script",
    [
        "seq 500 | CLOCHE less",
        "seq 500 >numbers; CLOCHE less <numbers",
        "CLOCHE seq 500 | less",
        "CLOCHE seq 500 | CLOCHE less",
    ],
)
def test_pagers(cloche: Runner, script: str) -> None:
    """A pager at the end of a pipe has the keys, inside and outside, whoever else could read them."""
    with shell(cloche, f"{script}; echo status $?") as on:
        before = on.mode()
        page(on)
        on.expect(b"status 0")
        assert on.mode() == before
        on.wait()


def test_a_pager_has_the_keys_although_another_machine_reads_them(cloche: Runner) -> None:
    """Keys are the pager's as long as it runs, and lines the first program's, which reads them, before and after."""
    first = "seq 500; exec >&2; read x; echo got $x"
    with shell(cloche, f"CLOCHE sh -c '{first}' | {{ CLOCHE less; echo status $?; }}") as on:
        page(on)
        on.expect(b"status 0")
        on.type(b"word\r")
        on.expect(b"got word\r\n")
        on.wait()


def test_a_program_that_uses_no_terminal_leaves_it_to_others(cloche: Runner) -> None:
    """What is typed is for the program at the front of the pipe, as lines, and the terminal's mode stays as it was."""
    with shell(cloche, "cat | CLOCHE grep --line-buffered x") as on:
        before = on.mode()
        on.type(b"axb\r")
        on.expect(b"axb\r\n")  # the echo
        on.expect(b"axb\r\n")
        assert on.mode() == before
        on.type(b"nothing\rand x\r")
        on.expect(b"nothing\r\nand x\r\n")
        on.expect(b"and x\r\n")
        on.type(b"\x04")
        assert on.wait() == 0
        assert on.mode() == before


def test_a_machine_without_the_terminal_reads_lines(cloche: Runner) -> None:
    """Two machines of a pipe, of which the first reads the terminal: the second, which could, leaves it alone."""
    with shell(cloche, "CLOCHE sh -c 'read x; echo got $x' | CLOCHE cat") as on:
        on.type(b"word\r")
        on.expect(b"got word\r\n")
        assert on.wait() == 0


def test_output_is_shown_as_by_the_host(cloche: Runner) -> None:
    """Lines end as those of a program of the host do."""
    with shell(cloche, r"printf 'a\nb\r\nc\n' | CLOCHE cat; echo end") as on:
        shown = on.expect(b"end\r\n")
        assert shown == b"a\r\nb\r\r\nc\r\nend\r\n"
        on.wait()


def test_each_descriptor_is_what_it_is_outside(cloche: Runner) -> None:
    """Stdin is a pipe, stdout the terminal, and stderr the terminal or a file; a terminal rules the program."""
    script = "for n in 0 1 2; do test -t $n && echo $n is; done; stty size </dev/tty"
    with shell(
        cloche, f"echo | CLOCHE sh -c '{script}'; echo next; echo | CLOCHE sh -c '{script}' 2>errors"
    ) as on:
        assert on.expect(b"30 100\r\n") == b"1 is\r\n2 is\r\n30 100\r\n"
        on.expect(b"next\r\n")
        assert on.expect(b"30 100\r\n") == b"1 is\r\n30 100\r\n"
        on.wait()


def test_questions_are_asked_on_the_terminal(cloche: Runner) -> None:
    """A program that opens /dev/tty has what is typed, shown or not as it wishes, and its stdin besides."""
    program = "import getpass, sys; print('secret was', len(getpass.getpass('word: ')), sys.stdin.read())"
    with shell(cloche, f'echo data | CLOCHE python3 -c "{program}"') as on:
        on.expect(b"word: ")
        on.type(b"hunter2\r")
        assert b"hunter2" not in on.expect(b"secret was 7 data")
        assert on.wait() == 0
    with shell(cloche, "echo data | CLOCHE sh -c 'echo ask; read x </dev/tty; read y; echo got $x $y'") as on:
        on.expect(b"ask")
        on.type(b"word\r")
        on.expect(b"got word data")
        assert on.wait() == 0


def test_editor_at_the_end_of_a_pipe(cloche: Runner) -> None:
    """An editor reads its text from the pipe and draws its screen at once as it is meant."""
    with shell(cloche, "printf 'one\\ntwo\\n' | CLOCHE vim.tiny -u NONE -N -") as on:
        on.expect(b"two")
        on.type(b":set columns?\r")
        on.expect(b"columns=100")
        on.type(b"\r:q!\r")
        assert on.wait() == 0


def test_control_z_and_fg(cloche: Runner) -> None:
    """Ctrl-Z in an editor at the end of a pipe gives the shell its terminal back, and fg goes on."""
    with TerminalProgram(cloche.user, ["bash", "--norc", "-i"]) as on:
        on.expect(b"$ ")
        on.type(f"echo first | {cloche.program} vim.tiny -u NONE -N -\r".encode())
        on.expect(b"\x1b[?1049h")
        on.expect(b"first")
        on.type(b"isecond\x1b")
        on.expect(b"second")
        on.type(b"\x1a")
        on.expect(b"Stopped")
        on.type(b"stty | grep -c -- -echo; echo $((40 + 2)) outside\r")
        on.expect(b"0\r\n42 outside")
        on.expect(b"$ ")
        on.type(b"fg\r")
        on.expect(b"\x1b[?1049h")
        on.expect(b"second")
        on.type(b":q!\r")
        on.expect(b"\x1b[?1049l")
        on.expect(b"$ ")
        on.type(b"exit\r")
        assert on.wait() == 0


def test_another_sessions_terminal_gives_no_keys(cloche: Runner, folder: Path) -> None:
    """On a terminal that does not rule the caller a program has none: nothing that is typed there is its to read."""
    done = folder / "done"
    script = f'setsid -w sh -c \'echo | CLOCHE sh -c "test -t 1 || echo no""ne"\'; echo end >{done}'
    with shell(cloche, script) as on:
        on.expect(b"none")
        on.wait()
    assert done.read_text() == "end\n"


def test_less_without_a_terminal_copies(cloche: Runner) -> None:
    """Where no stream is a terminal, a pager has none, and copies, as outside."""
    done = cloche.user.run([cloche.program, "less"], input=b"1\n2\n")
    assert (done.returncode, done.stdout) == (0, b"1\n2\n")
