"""The one door for host programs that belong to no domain (layer 3): compilers, ``--version``, package tools.

Never on the way to a domain's start: its processes are the warden's children (``cloche.host.warden``). What runs here
gets an environment from an allow-list, no descriptors, no terminal as standard input, and never outlives the call
(with one exception, ``start_detached``).
"""

from __future__ import annotations

import os
import signal
import sys

from cloche.errors import LaunchError, MissingToolError
from cloche.host.text import escape_untrusted
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping, Sequence
    from types import FrameType
    from typing import Self

#: Variables of the caller's that programs may see. Others (tokens, agents' sockets, preloads) are nobody's business.
ENVIRONMENT = frozenset(
    (
        "HOME",
        "LANG",
        "LANGUAGE",
        "LOGNAME",
        "PATH",
        "TERM",
        "TMPDIR",
        "TZ",
        "USER",
        "http_proxy",
        "https_proxy",
        "no_proxy",
    )
)
_PREFIXES = ("LC_", "XDG_")

#: Between the request to end and the kill, in seconds.
GRACE_S = 5.0
_TAIL_LINES = 20


class Completed(Record):
    """A program that has ended. ``status`` is its exit status, or 128 + N when signal N killed it."""

    stdout: bytes
    stderr: bytes
    status: int


class CommandError(LaunchError):
    """A host program failed.

    Attributes:
        argv: What was run.
        status: As in Completed; None when it was ended for taking too long.
        log_tail: The last lines it wrote, made safe to show.
    """

    def __init__(
        self, message: str, *, argv: Sequence[str], status: int | None, log_tail: tuple[str, ...]
    ) -> None:
        last = f": {log_tail[-1]}" if log_tail else ""
        super().__init__(message + last)
        self.argv = tuple(argv)
        self.status = status
        self.log_tail = log_tail


def allowed_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the caller's variables that are on the allow-list, with ``extra`` added."""
    kept = {
        name: value for name, value in os.environ.items() if name in ENVIRONMENT or name.startswith(_PREFIXES)
    }
    return {**kept, **(extra or {})}


def start_detached(argv: Sequence[str]) -> None:
    """Start a program that goes on by itself: in a session of its own, without streams, terminal or descriptors.

    The one exception from "nothing outlives the call". The caller must end soon: nobody waits for the program.

    Raises:
        LaunchError: It cannot be started.
    """
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    actions = [(os.POSIX_SPAWN_DUP2, null, number) for number in range(3)]
    try:
        os.posix_spawn(argv[0], list(argv), allowed_environment(), file_actions=actions, setsid=True)
    except OSError as error:
        raise LaunchError(f"cannot run {argv[0]}: {error.strerror}") from error
    finally:
        os.close(null)


def start_cloche(*words: str) -> None:
    """Start another command of cloche's so.

    Raises:
        LaunchError: It cannot be started.
    """
    start_detached(cloche_words(*words))


def cloche_words(*words: str) -> tuple[str, ...]:
    """Return the words that run a command of this very cloche."""
    source = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    program = (
        f"import sys; sys.path.insert(0, {source!r}); from cloche.cli.main import main; sys.exit(main())"
    )
    python = os.path.realpath(sys.executable) or "/usr/bin/python3"
    return (python, "-I", "-S", "-c", program, *words)


class Stream:
    """A program whose output is read while it runs. A context manager: leaving it ends the program.

    Attributes:
        stdout: Its output.

    Raises:
        MissingToolError: There is no such program.
        LaunchError: It could not be started for another reason.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = argv
        with _InterruptLater():
            self._child = _start(argv, has_input=False, env=allowed_environment(), cwd=None)
        assert self._child.stdout is not None
        self.stdout = self._child.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stdout.close()
        if self._child.poll() is None:
            _signal_group(self._child, signal.SIGKILL)
        self._child.wait()
        if self._child.stderr is not None:
            self._child.stderr.close()

    def finish(self) -> None:
        """Wait for its end, when its output was read to the end.

        Raises:
            CommandError: It has failed.
        """
        assert self._child.stderr is not None
        said = self._child.stderr.read()
        status = self._child.wait()
        if status:
            raise CommandError(
                f"{self._argv[0]} failed with status {status}",
                argv=self._argv,
                status=status,
                log_tail=_tail(said),
            )


def run(
    argv: Sequence[str],
    *,
    input: bytes | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    cwd: str | None = None,
    check: bool = False,
) -> Completed:
    """Run a program to its end and return what it wrote.

    Args:
        argv: Program and arguments; a name without a slash is searched in PATH.
        input: Its standard input; /dev/null without.
        env: Variables besides those on the allow-list.
        timeout: Seconds until its process group gets SIGTERM, and GRACE_S later SIGKILL.
        cwd: Its working directory.
        check: Raise for a status that is not 0.

    Raises:
        MissingToolError: There is no such program.
        CommandError: It took too long, or ``check`` and its status is not 0.
        LaunchError: It could not be started for another reason.
    """
    # The class is at hand only once subprocess is imported, which costs milliseconds.
    from subprocess import TimeoutExpired

    child = None
    try:
        with _InterruptLater():
            child = _start(argv, has_input=input is not None, env=allowed_environment(env), cwd=cwd)
        stdout, stderr = child.communicate(input, timeout)
    except TimeoutExpired:
        assert child is not None
        tail = _tail(_end(child))
        message = f"{argv[0]} did not end within {timeout:g} seconds"
        raise CommandError(message, argv=argv, status=None, log_tail=tail) from None
    except BaseException:
        if child is not None:
            _end(child)
        raise
    status = child.returncode if child.returncode >= 0 else 128 - child.returncode
    if check and status != 0:
        raise CommandError(
            f"{argv[0]} failed with status {status}",
            argv=argv,
            status=status,
            log_tail=_tail(stderr) or _tail(stdout),
        )
    return Completed(stdout, stderr, status)


class _InterruptLater:
    """Puts Ctrl-C off to the end of the block: a program that was started in it is known by then and can be ended."""

    def __init__(self) -> None:
        self._old: object = None
        self._came = False

    def __enter__(self) -> None:
        old = signal.getsignal(signal.SIGINT)
        if callable(old):
            try:
                signal.signal(signal.SIGINT, self._remember)
            except ValueError:  # not in the main thread: there is nothing to put off
                return
            self._old = old

    def __exit__(self, *exc: object) -> None:
        if callable(self._old):
            signal.signal(signal.SIGINT, self._old)
        if self._came:
            signal.raise_signal(signal.SIGINT)

    def _remember(self, _signo: int, _frame: FrameType | None) -> None:
        self._came = True


def _start(
    argv: Sequence[str], *, has_input: bool, env: Mapping[str, str], cwd: str | None
) -> subprocess.Popen[bytes]:
    import subprocess

    try:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE if has_input else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            cwd=cwd,
            process_group=0,
        )
    except FileNotFoundError as error:
        if cwd is not None and not os.path.isdir(cwd):
            raise LaunchError(f"cannot run {argv[0]}: there is no directory {cwd}") from error
        if "/" in argv[0] and os.path.exists(argv[0]):
            raise LaunchError(f"cannot run {argv[0]}: its interpreter or loader does not exist") from error
        raise MissingToolError(argv[0], hint="Install it.") from error
    except OSError as error:
        raise LaunchError(f"cannot run {argv[0]}: {error.strerror}") from error


def _end(child: subprocess.Popen[bytes]) -> bytes:
    """End the child's process group, politely first, and return what it wrote to its standard error."""
    from subprocess import TimeoutExpired

    written = b""
    for signo in (signal.SIGTERM, signal.SIGKILL):
        _signal_group(child, signo)
        # A stopped program would not notice.
        _signal_group(child, signal.SIGCONT)
        try:
            return child.communicate(timeout=GRACE_S)[1]
        except TimeoutExpired as error:
            written = error.stderr or b""
    # Something has left the group and holds the pipes open; the program itself is dead.
    for stream in (child.stdin, child.stdout, child.stderr):
        if stream is not None:
            stream.close()
    child.wait()
    return written


def _signal_group(child: subprocess.Popen[bytes], signo: int) -> None:
    try:
        os.killpg(child.pid, signo)
    except ProcessLookupError:
        return


def _tail(output: bytes) -> tuple[str, ...]:
    lines = output.strip().splitlines()[-_TAIL_LINES:]
    return tuple(escape_untrusted(line) for line in lines)


def run_in_terminal(argv: Sequence[str]) -> int:
    """Run a program of the caller's choice, an editor, with the caller's terminal and environment; return its status.

    What is typed is the program's: while it runs, Ctrl-C does not end cloche.

    Raises:
        MissingToolError: There is no such program.
        LaunchError: It could not be started for another reason.
    """
    keys = (signal.SIGINT, signal.SIGQUIT)
    before = [signal.signal(signo, signal.SIG_IGN) for signo in keys]
    try:
        pid = os.posix_spawnp(argv[0], list(argv), os.environ, setsigdef=keys)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except FileNotFoundError:
        raise MissingToolError(argv[0], hint="Set VISUAL or EDITOR to an editor that is installed.") from None
    except OSError as error:
        raise LaunchError(f"cannot run {argv[0]}: {error.strerror}") from error
    finally:
        for signo, handler in zip(keys, before, strict=True):
            signal.signal(signo, handler)
    return status if status >= 0 else 128 - status
