"""The one door for host programs outside of domains (``cloche.host.process``)."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from cloche.errors import LaunchError, MissingToolError
from cloche.host import process
from cloche.host.process import CommandError, Completed, run
from support.wardens import PATIENCE_S, wait_dead

if TYPE_CHECKING:
    from pathlib import Path


def test_output_and_status_are_returned() -> None:
    """Both outputs come back as bytes, and the status is the shell's, signals included."""
    assert run(["sh", "-c", "echo out; echo err >&2; exit 3"]) == Completed(b"out\n", b"err\n", 3)
    assert run(["sh", "-c", "kill -KILL $$"]).status == 128 + signal.SIGKILL


def test_input_is_given_and_is_empty_by_default() -> None:
    """A program reads what it was given, and end of file when that was nothing."""
    assert run(["cat"], input=b"\xff\0\n").stdout == b"\xff\0\n"
    assert run(["cat"]).stdout == b""


def test_only_allowed_variables_are_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program sees the variables on the allow-list and those given, and no secret of the caller's."""
    monkeypatch.setenv("SECRET_TOKEN", "x")
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("LC_TIME", "C")
    names = {line.partition(b"=")[0].decode() for line in run(["env"], env={"MORE": "1"}).stdout.splitlines()}
    assert {"PATH", "LC_TIME", "MORE"} <= names
    assert not names & {"SECRET_TOKEN", "LD_PRELOAD"}


def test_no_descriptor_is_inherited() -> None:
    """A descriptor that was left inheritable does not reach the program."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    # The listing has itself open as 3.
    assert run(["ls", "/proc/self/fd"]).stdout.split() == [b"0", b"1", b"2", b"3"]
    os.close(reader)
    os.close(writer)


def test_missing_programs_and_directories_are_named(tmp_path: Path) -> None:
    """A program or a directory that is not there gives an error that says which."""
    with pytest.raises(MissingToolError, match="cannot find no-such-program"):
        run(["no-such-program"])
    with pytest.raises(LaunchError, match=f"cannot run true: there is no directory {tmp_path}/no"):
        run(["true"], cwd=f"{tmp_path}/no")
    (tmp_path / "data").write_text("")
    with pytest.raises(LaunchError, match="Permission denied"):
        run([str(tmp_path / "data")])


def test_a_failure_carries_the_last_lines() -> None:
    """With ``check`` a status other than 0 raises, with the last line in the message and escape sequences shown."""
    with pytest.raises(CommandError, match=r"^sh failed with status 2: last \\x1b\[31m$") as caught:
        run(["sh", "-c", r"printf 'first\nlast \033[31m\n' >&2; exit 2"], check=True)
    assert caught.value.status == 2
    assert caught.value.log_tail == ("first", "last \\x1b[31m")
    assert run(["false"]).status == 1


def test_a_program_that_takes_too_long_is_ended() -> None:
    """At the time limit the whole process group is asked to end, children included."""
    with pytest.raises(CommandError, match=r"^sh did not end within 0.5 seconds: (\d+)$") as caught:
        run(["sh", "-c", "sleep 1000 & echo $! >&2; wait"], timeout=0.5)
    assert caught.value.status is None
    assert not os.path.exists(f"/proc/{caught.value.log_tail[-1]}/exe")


def test_a_program_that_ignores_the_request_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ignores SIGTERM, or is stopped, is killed after the time of grace."""
    monkeypatch.setattr(process, "GRACE_S", 0.2)
    with pytest.raises(CommandError, match="did not end within"):
        run(["sh", "-c", "trap '' TERM; while :; do sleep 1000; done"], timeout=0.5)
    with pytest.raises(CommandError, match="did not end within"):
        run(["sh", "-c", "kill -STOP $$"], timeout=0.5)


def test_an_interruption_leaves_no_program_behind() -> None:
    """When Ctrl-C ends the wait, the program is ended before the exception goes on."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    told: list[int] = []

    def interrupt() -> None:
        with open(reader) as pipe:
            told.append(os.pidfd_open(int(pipe.readline())))
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    script = f"echo $$ >/proc/{os.getpid()}/fd/{writer}; exec sleep 1000"
    with pytest.raises(KeyboardInterrupt):
        run(["sh", "-c", script])
    thread.join()
    os.close(writer)
    assert wait_dead(told, PATIENCE_S) == []


def test_importing_it_is_cheap() -> None:
    """The module is on the way of every command, so it imports subprocess only when a program is run."""
    code = "import sys; sys.path.insert(0, 'src'); import cloche.host.process; print('subprocess' in sys.modules)"
    assert run([sys.executable, "-I", "-S", "-c", code]).stdout == b"False\n"


def test_a_program_without_its_loader_is_not_missing(tmp_path: Path) -> None:
    """A program that is there and cannot be interpreted is not called missing."""
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    with pytest.raises(LaunchError, match="its interpreter or loader does not exist"):
        run([str(script)])
