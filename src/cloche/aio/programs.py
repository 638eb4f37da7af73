"""Starting programs in a machine (layer 5b): the same for a sandbox and for a domain."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from cloche import api
from cloche.aio.process import Process
from cloche.aio.threads import undone
from cloche.api import CompletedProcess
from cloche.api.programs import encode_words, piped

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cloche.api.popen import File
    from cloche.api.programs import Word


class Programs:
    """What starts programs: the same for a sandbox and for a domain."""

    def __init__(self, popen: Callable[..., api.Popen]) -> None:
        self._popen = popen

    async def create_subprocess_exec(
        self,
        program: Word,
        *args: Word,
        stdin: File = None,
        stdout: File = None,
        stderr: File = None,
        env: Mapping[str, str] | None = None,
        cwd: Word | None = None,
        user: str | None = None,
    ) -> Process:
        """Start a program, like ``asyncio.create_subprocess_exec``. Cancelling it ends the program.

        Raises:
            ClocheError: It could not be started.
        """
        starting = asyncio.to_thread(
            self._popen,
            [program, *args],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=env,
            cwd=cwd,
            user=user,
        )
        process = Process(await undone(starting, _end))
        try:
            await process.connect()
        except BaseException:
            process.kill()
            raise
        return process

    async def run(
        self,
        args: Sequence[Word],
        *,
        input: str | bytes | None = None,
        capture_output: bool = False,
        timeout: float | None = None,
        check: bool = False,
        text: bool = False,
        stdin: File = None,
        stdout: File = None,
        stderr: File = None,
        **options: Any,
    ) -> CompletedProcess[Any]:
        """Run a program to its end, like ``Sandbox.run`` of ``cloche``. Cancelling it ends the program.

        Raises:
            CalledProcessError, TimeoutExpired, ClocheError: As ``cloche.run``.
        """
        files = piped((stdin, stdout, stderr), has_input=input is not None, capture_output=capture_output)
        encoding, errors = options.pop("encoding", None), options.pop("errors", None)
        text = text or encoding is not None or errors is not None
        encode_words(args)  # one string is refused, as everywhere
        process = await self.create_subprocess_exec(
            *args, stdin=files[0], stdout=files[1], stderr=files[2], **options
        )
        code = (encoding or "utf-8", errors or "strict")
        data = input.encode(*code) if isinstance(input, str) else input
        try:
            out, err = await asyncio.wait_for(process.communicate(data), timeout)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise api.TimeoutExpired(list(args), timeout or 0.0) from None
        except asyncio.CancelledError:
            process.kill()
            raise
        status = await process.wait()
        texts = [piece.decode(*code) if text and piece is not None else piece for piece in (out, err)]
        if check and status:
            raise api.CalledProcessError(status, list(args), texts[0], texts[1])
        return CompletedProcess(list(args), status, texts[0], texts[1])


def _end(popen: api.Popen) -> None:
    popen.kill()
    for file in (popen.stdin, popen.stdout, popen.stderr):
        if file is not None:
            file.close()
    popen.wait()
