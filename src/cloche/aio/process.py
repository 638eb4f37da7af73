"""``Process`` (layer 5b): a program in a guest, as ``asyncio.subprocess`` has one."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche import api


class Process:
    """A program in the guest, like ``asyncio.subprocess.Process``.

    Attributes:
        stdin: A StreamWriter for PIPE, else None.
        stdout, stderr: StreamReaders for PIPE, else None.
    """

    def __init__(self, popen: api.Popen) -> None:
        self._popen = popen
        self.stdin: asyncio.StreamWriter | None = None
        self.stdout: asyncio.StreamReader | None = None
        self.stderr: asyncio.StreamReader | None = None

    @property
    def pid(self) -> int:
        """Its process id in the guest."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """Its status, negative for a signal; None while it runs."""
        return self._popen.returncode

    async def connect(self) -> None:
        """Turn the pipes into asyncio streams."""
        loop = asyncio.get_running_loop()
        if self._popen.stdin is not None:
            transport, protocol = await loop.connect_write_pipe(
                lambda: asyncio.streams.FlowControlMixin(loop=loop), self._popen.stdin
            )
            self.stdin = asyncio.StreamWriter(transport, protocol, None, loop)
        for name in ("stdout", "stderr"):
            pipe = getattr(self._popen, name)
            if pipe is not None:
                reader = asyncio.StreamReader(loop=loop)
                raw = os.fdopen(os.dup(pipe.fileno()), "rb", buffering=0)
                pipe.close()
                protocol_of = asyncio.StreamReaderProtocol(reader, loop=loop)
                await loop.connect_read_pipe(partial(_same, protocol_of), raw)
                setattr(self, name, reader)

    async def wait(self) -> int:
        """Wait for the program and return its status."""
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def tell() -> None:
            if not ended.done():
                ended.set_result(None)

        def from_thread() -> None:
            with suppress(RuntimeError):  # the event loop is closed: nobody waits any more
                loop.call_soon_threadsafe(tell)

        self._popen.on_end(from_thread)
        await ended
        return self._popen.wait()

    async def communicate(self, input: bytes | None = None) -> tuple[bytes | None, bytes | None]:
        """Write ``input``, read everything, wait."""
        _, out, err = await asyncio.gather(self._feed(input), _drain(self.stdout), _drain(self.stderr))
        await self.wait()
        return out, err

    async def _feed(self, data: bytes | None) -> None:
        if self.stdin is None:
            return
        try:
            if data:
                self.stdin.write(data)
                await self.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            return  # the program did not want all of it
        finally:
            self.stdin.close()

    def send_signal(self, signo: int) -> None:
        """Send a signal to the program."""
        self._popen.send_signal(signo)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._popen.terminate()

    def kill(self) -> None:
        """Send SIGKILL."""
        self._popen.kill()


def _same(protocol: asyncio.StreamReaderProtocol) -> asyncio.StreamReaderProtocol:
    return protocol


async def _drain(reader: asyncio.StreamReader | None) -> bytes | None:
    return None if reader is None else await reader.read()
