"""The command line's entry, started as a user starts it: statuses, messages, closed and broken streams."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cloche import __version__, log
from cloche.cli import main as entry
from cloche.errors import ClocheError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator

CLOCHE = Path(__file__).resolve().parents[2] / "bin/cloche"


@pytest.fixture(autouse=True)
def no_sinks() -> Iterator[None]:
    """Leave no sink of a command line behind for other tests."""
    yield
    log.set_sink("notice", None)
    log.set_sink("debug", None)


@pytest.fixture
def surroundings(tmp_path: Path) -> dict[str, str]:
    """Return an environment whose directories are empty and the test's own."""
    return {
        "HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "XDG_RUNTIME_DIR": str(tmp_path),
    }


def run(
    *words: str | bytes, env: dict[str, str], stdout: int = subprocess.PIPE
) -> subprocess.CompletedProcess[bytes]:
    """Start the command line and return how it ended."""
    return subprocess.run(
        [CLOCHE, *words], env=env, check=False, timeout=60, stdout=stdout, stderr=subprocess.PIPE
    )


def test_the_version(surroundings: dict[str, str]) -> None:
    """--version prints one line, whatever follows, and loads no part of the command line but its entry."""
    for words in ((), ("--nonsense",)):
        done = run("--version", *words, env=surroundings)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.decode() == f"cloche {__version__}\n"
    loaded = subprocess.run(
        ["/usr/bin/python3", "-IS", "-X", "importtime", CLOCHE, "--version"], capture_output=True, check=True
    ).stderr.decode()
    modules = set(re.findall(r"\| +(cloche\S*)$", loaded, re.MULTILINE))
    assert modules <= {"cloche", "cloche.cli", "cloche.cli.main", "cloche.record"}


def test_without_words_the_help_is_shown(surroundings: dict[str, str]) -> None:
    """A bare `cloche` shows the overview and fails, for nothing was run."""
    done = run(env=surroundings)
    assert done.returncode == ExitCode.FAILED
    assert done.stdout.startswith(b"usage: cloche ")


def test_a_verb_that_lacks_its_verb_shows_help(surroundings: dict[str, str]) -> None:
    """`cloche kernel` alone shows what may follow and fails."""
    done = run("kernel", env=surroundings)
    assert done.returncode == ExitCode.FAILED
    assert b"\n  build " in done.stdout


@pytest.mark.parametrize(
    "words, message, hint",
    [
        (("--memry", "1G", "true"), "unknown option --memry", "--memory"),
        (("kernel", "biuld"), "`cloche kernel` knows no 'biuld'", "build"),
        (("run",), "no program was named", "cloche run -- uname -a"),
        (("-m", "lots", "true"), "--memory: 'lots' is not a size", "512M"),
        (("-e", "=x", "true"), "--env '=x' names no variable", "NAME=VALUE"),
        (("-e", "NOT_SET_HERE", "true"), "the variable is not set here", "NOT_SET_HERE=VALUE"),
        (("--driver", "vmware", "true"), "there is no driver 'vmware'", "qemu and bwrap"),
        (("--share", "/nonexistent", "true"), "cannot share /nonexistent: No such file", "--share DIR"),
        (("--share", "/", "true"), "the whole root directory cannot be shared", "--share ~/project:rw"),
        (("--include", "x", "true"), "--include 'x' is not of the form GUEST=HOST", "/etc/app.conf"),
        (("supervise",), "is started by cloche itself", "cloche help"),
    ],
)
def test_mistakes(surroundings: dict[str, str], words: tuple[str, ...], message: str, hint: str) -> None:
    """A mistake gives one sentence on stderr that begins with cloche's name, a hint, and 125."""
    done = run(*words, env=surroundings)
    assert done.returncode == ExitCode.FAILED
    assert done.stdout == b""
    lines = done.stderr.decode().splitlines()
    assert lines[0].startswith("cloche: ")
    assert message in lines[0]
    assert len(lines) == 2
    assert lines[1].startswith("hint: ")
    assert hint in lines[1]


def test_names_that_are_not_text_are_shown_escaped(surroundings: dict[str, str]) -> None:
    """Bytes that are not UTF-8 and control characters of a name do not reach the terminal."""
    done = run("--share", b"/no\xff\x1b[2J\t\xc2\x9b", "true", env=surroundings)
    assert done.stderr.startswith(
        b"cloche: cannot share /no\\xff\\x1b[2J\\t\\x9b: No such file or directory\nhint: "
    )


def test_an_error_is_printed_whole(capfd: pytest.CaptureFixture[str]) -> None:
    """Message and hint are printed, the hint's own lines kept; without a hint there is only the message."""
    entry.report(ClocheError("it failed", hint="first\n  second"))
    entry.report(ClocheError("again: 100 µm"))
    assert capfd.readouterr().err == "cloche: it failed\nhint: first\n  second\ncloche: again: 100 µm\n"


def test_a_reader_that_leaves_is_no_error(surroundings: dict[str, str]) -> None:
    """Output nobody reads any more ends the command as SIGPIPE would, without a word."""
    read, write = os.pipe()
    os.close(read)
    try:
        for words in (("help",), ("completion", "bash"), ("--version",)):
            done = run(*words, env=surroundings, stdout=write)
            assert (done.returncode, done.stderr) == (141, b"")
    finally:
        os.close(write)


def test_a_full_disk_is_told(surroundings: dict[str, str]) -> None:
    """Output that cannot be written is an error in one sentence."""
    with open("/dev/full", "wb") as full:
        for words in (("help",), ("completion", "bash"), ("--version",)):
            done = run(*words, env=surroundings, stdout=full.fileno())
            assert done.returncode == ExitCode.FAILED
            assert done.stderr.startswith(b"cloche: ")
            assert b"No space left on device\nhint: " in done.stderr
            assert b"output" in done.stderr
            assert done.stderr.count(b"\n") == 2


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_closed_standard_streams(surroundings: dict[str, str], closed: tuple[int, ...]) -> None:
    """A caller that closed standard streams gets the command's status, and no other file takes their numbers."""
    program = (
        f"import os, sys\nfor fd in {closed}: os.close(fd)\nos.execv({str(CLOCHE)!r}, ['cloche', 'help'])\n"
    )
    done = subprocess.run(
        ["/usr/bin/python3", "-c", program], env=surroundings, check=False, capture_output=True
    )
    assert done.returncode == 0
    assert done.stderr == b""
    assert done.stdout.startswith(b"usage") is (1 not in closed)


def test_the_holes_of_closed_streams_are_filled() -> None:
    """After the entry has begun, descriptors 0 to 2 are open, the closed ones on /dev/null."""
    source = CLOCHE.parents[1] / "src"
    program = (
        f"import os, sys; sys.path.insert(0, {str(source)!r})\n"
        "from cloche.cli.main import main\n"
        "out = os.dup(1); os.close(0); os.close(2)\n"
        "main(['--version'])\n"
        "os.write(out, ' '.join(os.readlink(f'/proc/self/fd/{fd}') for fd in (0, 2)).encode())\n"
    )
    done = subprocess.run(["/usr/bin/python3", "-IS", "-c", program], capture_output=True, check=True)
    assert done.stdout.split(b"\n")[1] == b"/dev/null /dev/null"


def test_what_the_host_refuses_is_a_sentence(surroundings: dict[str, str]) -> None:
    """A failure of the host nobody foresaw is told without a traceback."""
    done = run("supervise", "99", env=surroundings)
    assert done.returncode == ExitCode.FAILED
    assert done.stderr.startswith(b"cloche: the host refused what cloche needs: Bad file descriptor\nhint: ")


def test_an_interrupt_ends_with_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while nothing else handles it gives 130."""

    def interrupted(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, "_answer", interrupted)
    assert entry.main(["help"]) == 130


def test_verbose_shows_what_is_being_done(capfd: pytest.CaptureFixture[str]) -> None:
    """Notices are always shown, debugging messages with --verbose only."""
    assert entry.main(["man"]) == 0
    log.debug("hidden")
    log.notice("shown")
    assert entry.main(["man", "-v"]) == 0
    log.debug("now shown")
    assert capfd.readouterr().err == "cloche: shown\ncloche: now shown\n"
