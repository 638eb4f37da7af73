"""What the set-up says, and running programs so that one sees that they are alive."""

from __future__ import annotations

import os
import sys
from time import monotonic
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: The project's directory.
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
QUIET_S = 2.0  # a program that ends sooner is not mentioned again
LINE_EVERY_S = 10.0  # how often a line is written where there is no terminal
_TAIL_LINES = 25

#: Whether one line of the terminal may be written over and over: not while two stages run at the same time.
one_writer = True


class SetupError(Exception):
    """A stage cannot be done; the text says why and what to do, and may have several lines."""


def say(stage: str, text: str) -> None:
    """Write one line for a stage."""
    print(f"{stage + ':':<8} {text}", flush=True)


def cache_home() -> str:
    """Return cloche's directory in the XDG cache (not made here)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not base.startswith("/"):  # the XDG specification: a relative path is to be ignored
        base = os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "cloche")


def run(
    stage: str, label: str, argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: str = ROOT
) -> None:
    """Run a program, its output in the stage's log, with signs of life while it runs.

    Args:
        stage: The stage's name; the log is ``setup-STAGE.log`` in the cache.
        label: What is being done, for the reader.
        argv: The program and its arguments.
        env: Variables set beside the present ones.
        cwd: The working directory.

    Raises:
        SetupError: It cannot be started, or ended with another status than 0; holds the end of its output.
    """
    import subprocess

    logs = os.path.join(cache_home(), "log")
    os.makedirs(logs, exist_ok=True)
    log_path = os.path.join(logs, f"setup-{stage}.log")
    say(stage, label)
    start = monotonic()
    with open(log_path, "ab", buffering=0) as log:
        log.write(f"$ {' '.join(argv)}\n".encode())
        try:
            # LC_ALL: the end of the output may be shown below an English sentence.
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
            )
        except OSError as error:
            raise SetupError(f"cannot start {argv[0]}: {error.strerror}") from error
        with process:
            if process.stdout is None:
                raise AssertionError("the pipe was asked for")
            tail = _follow(stage, process.stdout, log, start)
    if process.returncode != 0:
        shown = "\n".join(f"    {line}" for line in tail[-_TAIL_LINES:])
        raise SetupError(
            f"{label}: {argv[0]} ended with status {process.returncode}\n{shown}\n(the whole log: {log_path})"
        )
    if monotonic() - start > QUIET_S:
        say(stage, f"... done in {monotonic() - start:.0f} s")


def output_of(argv: Sequence[str], *, env: Mapping[str, str] | None = None, any_status: bool = False) -> str:
    """Return what a short program prints, or an empty string when it cannot be run or (without any_status) fails."""
    import subprocess

    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
            cwd=ROOT,
            check=False,
        )
    except OSError:
        return ""
    return done.stdout.decode(errors="replace") if any_status or done.returncode == 0 else ""


def _follow(stage: str, stream: IO[bytes], log: IO[bytes], start: float) -> list[str]:
    """Copy a program's output to the log until its end; return its last lines."""
    import selectors

    terminal = one_writer and sys.stdout.isatty()
    interval = 0.5 if terminal else LINE_EVERY_S
    next_sign = start + (QUIET_S if terminal else LINE_EVERY_S)
    tail: list[str] = []
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            if selector.select(max(0.0, next_sign - monotonic())):
                data = os.read(stream.fileno(), 65536)
                if not data:
                    break
                log.write(data)
                *lines, rest = (rest + data.replace(b"\r", b"\n")).split(b"\n")
                tail.extend(line.decode(errors="replace") for line in lines if line.strip())
                del tail[: -2 * _TAIL_LINES]
            if monotonic() >= next_sign:
                last = _printable(tail[-1]) if tail else "..."
                sign = f"{stage + ':':<8} {monotonic() - start:4.0f} s  {last}"
                print(f"\r\033[K{sign}" if terminal else sign, end="" if terminal else "\n", flush=True)
                next_sign = monotonic() + interval
    if terminal:
        print("\r\033[K", end="", flush=True)
    if rest.strip():
        tail.append(rest.decode(errors="replace"))
    return tail


def _printable(line: str) -> str:
    """Shorten a line for the terminal and take what moves its cursor out of it."""
    return "".join(char for char in line.strip() if char.isprintable())[:90]
