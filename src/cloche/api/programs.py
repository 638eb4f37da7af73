"""Starting programs in a machine (layer 5b): the same for a sandbox and for a domain, named as in ``subprocess``."""

from __future__ import annotations

import os
import subprocess

from cloche.api.popen import PIPE, TimeoutExpired
from cloche.errors import UsageError
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from cloche.api.popen import File, Popen

    Word = str | bytes | os.PathLike[str]

CalledProcessError = subprocess.CalledProcessError
CompletedProcess = subprocess.CompletedProcess

#: What of ``run``'s options is about the program and not about its machine.
RUN_OPTIONS = (
    "input",
    "capture_output",
    "text",
    "encoding",
    "errors",
    "check",
    "stdin",
    "stdout",
    "stderr",
    "env",
    "cwd",
    "user",
)


class Wanted(Record):
    """A program that is to be started.

    Attributes:
        words: As they were given.
        argv: The words as bytes.
        env: Variables added to those of the guest.
        cwd: Where it starts; None for where the machine's own program does.
        user: Whom it runs as; None for whom the machine's own program does.
        files: stdin, stdout and stderr.
        text: Encoding and errors of its pipes; None for bytes.
    """

    words: list[Any]
    argv: tuple[bytes, ...]
    env: tuple[tuple[bytes, bytes], ...]
    cwd: str | None
    user: str | None
    files: tuple[File, File, File]
    text: tuple[str | None, str | None] | None


class Programs:
    """What starts programs."""

    def _popen(self, wanted: Wanted) -> Popen:
        """Start one.

        Raises:
            ClocheError: It could not be started.
        """
        raise NotImplementedError

    def popen(
        self,
        args: Sequence[Word],
        *,
        stdin: File = None,
        stdout: File = None,
        stderr: File = None,
        text: bool = False,
        encoding: str | None = None,
        errors: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Word | None = None,
        user: str | None = None,
    ) -> Popen:
        """Start a program and return at once, like ``subprocess.Popen``. It ends with this program.

        ``stdin``, ``stdout`` and ``stderr`` are PIPE, DEVNULL, a descriptor or an open file; None means this
        program's own. ``env`` is added to the guest's environment. ``stderr`` may be STDOUT.

        Raises:
            ClocheError: The machine does not run, or the program could not be started.
        """
        return self._popen(
            Wanted(
                list(args),
                encode_words(args),
                encode_variables(env),
                None if cwd is None else os.fsdecode(cwd),
                user,
                (stdin, stdout, stderr),
                (encoding, errors) if text or encoding or errors else None,
            )
        )

    def run(
        self,
        args: Sequence[Word],
        *,
        input: str | bytes | None = None,
        capture_output: bool = False,
        timeout: float | None = None,
        check: bool = False,
        stdin: File = None,
        stdout: File = None,
        stderr: File = None,
        **options: Any,
    ) -> CompletedProcess[Any]:
        """Run a program to its end, like ``subprocess.run``.

        Raises:
            CalledProcessError: ``check`` was given and the status is not 0.
            TimeoutExpired: The time has passed; the program was killed.
            ClocheError: The machine does not run, or the program could not be started.
        """
        files = piped((stdin, stdout, stderr), has_input=input is not None, capture_output=capture_output)
        process = self.popen(args, stdin=files[0], stdout=files[1], stderr=files[2], **options)
        with process:
            try:
                out, err = process.communicate(input, timeout=timeout)
            except TimeoutExpired as expired:
                process.kill()
                expired.stdout, expired.stderr = process.communicate()
                raise
            except BaseException:
                process.kill()
                raise
            status = process.wait()
        if check and status:
            raise CalledProcessError(status, process.args, out, err)
        return CompletedProcess(process.args, status, out, err)

    def call(self, args: Sequence[Word], **options: Any) -> int:
        """Run a program and return its status, like ``subprocess.call``."""
        return self.run(args, **options).returncode

    def check_call(self, args: Sequence[Word], **options: Any) -> int:
        """Run a program that must succeed, like ``subprocess.check_call``."""
        return self.run(args, check=True, **options).returncode

    def check_output(self, args: Sequence[Word], **options: Any) -> Any:
        """Return what a program writes to stdout, like ``subprocess.check_output``."""
        return self.run(args, check=True, stdout=PIPE, **options).stdout


def encode_words(args: Sequence[Word]) -> tuple[bytes, ...]:
    """Return a program's words as bytes.

    Raises:
        UsageError: They are one string, or none.
    """
    if isinstance(args, (str, bytes)):
        raise UsageError(
            "the program must be given as a list of words: there is no shell to take a string apart",
            hint='Write for example ["uname", "-a"].',
        )
    if not args:
        raise UsageError("no program was named", hint='Give its words, for example ["uname", "-a"].')
    return tuple(os.fsencode(word) for word in args)


def encode_variables(env: Mapping[str, str] | None) -> tuple[tuple[bytes, bytes], ...]:
    """Return variables as bytes."""
    return tuple((os.fsencode(name), os.fsencode(value)) for name, value in (env or {}).items())


def piped(
    files: tuple[File, File, File], *, has_input: bool, capture_output: bool
) -> tuple[File, File, File]:
    """Return a program's streams with the pipes that ``input`` and ``capture_output`` ask for.

    Raises:
        ValueError: They were given otherwise, too.
    """
    stdin, stdout, stderr = files
    if has_input and stdin is not None:
        raise ValueError("stdin and input cannot be given together")
    if capture_output and (stdout is not None or stderr is not None):
        raise ValueError("stdout and stderr cannot be given together with capture_output")
    return (
        PIPE if has_input else stdin,
        PIPE if capture_output else stdout,
        PIPE if capture_output else stderr,
    )
