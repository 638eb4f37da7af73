"""How a program that was not started is told; what the agent says about it is untrusted."""

from __future__ import annotations

import errno

import pytest

from cloche.domain.outcome import failure
from cloche.errors import CommandNotExecutableError, CommandNotFoundError, DomainError, ExitCode
from cloche.guest.job import Job
from cloche.guest.messages import Failed
from cloche.host.text import describe_errno
from cloche.model.guest import GuestCommand

COMMAND = GuestCommand((b"./tool\x1b",), (), b"/work\x1b", 1000, 1000, ())


def told(code: int, what: bytes) -> tuple[type, str, str]:
    """Return class, message and hint of what is said when the agent answers FAILED."""
    job = Job(1, lambda message: None)
    job.failure = Failed(1, code, what)
    error = failure(job, COMMAND)
    assert error.hint
    assert (error.message + error.hint).isprintable()
    return type(error), error.message, error.hint


@pytest.mark.parametrize(
    "code, words",
    [
        (errno.EACCES, "Permission denied"),
        (errno.ENOTDIR, "Not a directory"),
        (errno.ELOOP, "symbolic links"),
        (errno.ENAMETOOLONG, "too long"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_only_a_missing_directory_is_missing(code: int, words: str) -> None:
    """A working directory that cannot be entered for another reason says that reason."""
    kind, message, _ = told(code, b"cwd /work")
    assert kind is CommandNotExecutableError
    assert message.startswith("the program cannot start in /work\\x1b: ")
    assert words in message


def test_a_missing_directory() -> None:
    """The shares are the remedy for a working directory that does not exist in the guest."""
    kind, message, hint = told(errno.ENOENT, b"cwd /work")
    assert kind is CommandNotFoundError
    assert "has no directory /work" in message
    assert "--here" in hint


def test_a_missing_interpreter_is_no_missing_program() -> None:
    """A program that is there and cannot be interpreted is not called missing."""
    kind, message, hint = told(errno.ENOENT, b"interpreter of ./tool")
    assert kind is CommandNotFoundError
    assert "was not found" not in message
    assert "#!" in hint


@pytest.mark.parametrize("code", [0, 4096, 1 << 31, 0xFFFF_FFFF])
@pytest.mark.parametrize("what", [b"", b"cwd", b"exec \xff\x1b[31m", b"setup"])
def test_numbers_no_kernel_would_say(code: int, what: bytes) -> None:
    """A hostile agent's error number is told as a number; nothing fails on it."""
    _, message, _ = told(code, what)
    assert f"error {code}" in message


def test_a_guest_that_is_full() -> None:
    """A guest runs so many programs at once; one more is told so, and that it can wait."""
    kind, message, hint = told(errno.EAGAIN, b"number of jobs")
    assert kind is DomainError
    assert message == "./tool\\x1b cannot be started: as many programs run in the domain as it can hold"
    assert "Wait" in hint


def test_error_numbers() -> None:
    """What the C library knows is in its words."""
    assert describe_errno(errno.ENOSPC) == "No space left on device"
    assert describe_errno(0x8000_0000) == "error 2147483648"


def test_statuses() -> None:
    """Not found is 127, not executable 126."""
    assert (CommandNotFoundError.exit_code, CommandNotExecutableError.exit_code) == (
        ExitCode.NOT_FOUND,
        ExitCode.DENIED,
    )
