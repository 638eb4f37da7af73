"""The asyncio API (layer 5b): ``run``, ``Sandbox`` and processes, named as in ``asyncio.subprocess``.

The same machinery as ``cloche.api``: a thread per sandbox talks to the guest, and tells the event loop when a program
has ended. What starts and ends machines and programs is done in worker threads; pipes are asyncio streams.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from cloche import api
from cloche.api import DEVNULL, PIPE, STDOUT, CompletedProcess
from cloche.api.programs import encode_words, piped
from cloche.errors import ClocheError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from cloche.api.popen import File
    from cloche.api.programs import Word
    from cloche.domain.control.share_list import Listed
    from cloche.domain.numbers import Numbers

T = TypeVar("T")

__all__ = ["DEVNULL", "PIPE", "STDOUT", "Domain", "Process", "Sandbox", "run"]


async def run(
    args: Sequence[Word], *, timeout: float | None = None, sandbox: Sandbox | None = None, **options: Any
) -> CompletedProcess[Any]:
    """Run a program in a machine of its own; the arguments are those of ``cloche.run``.

    Cancelling it ends the program.

    Raises:
        CalledProcessError, TimeoutExpired, ClocheError: As ``cloche.run``.
    """
    running = {name: options.pop(name) for name in api.RUN_OPTIONS if name in options}
    if sandbox is not None:
        return await sandbox.run(args, timeout=timeout, **running)
    async with Sandbox(**options) as fresh:
        return await fresh.run(args, timeout=timeout, **running)


class _Programs:
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
        process = Process(await _undone(starting, _end))
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


class _Machine(_Programs):
    """What can be done with a machine that runs: the methods of ``cloche.api.machine.Machine``, with ``await``."""

    def __init__(self, machine: api.Machine) -> None:
        super().__init__(machine.popen)
        self._machine = machine

    @property
    def ident(self) -> str:
        """Its identity, which no other domain ever has.

        Raises:
            ClocheError: It does not run.
        """
        return self._machine.ident

    async def state(self) -> str:
        """Return ``starting``, ``running``, ``paused``, ``stopping`` or ``ended``."""
        return await asyncio.to_thread(lambda: self._machine.state)

    async def kill(self, signo: int = 9) -> None:
        """Send a signal to the domain's own program, or to all others."""
        await asyncio.to_thread(self._machine.kill, signo)

    async def pause(self) -> None:
        """Let it stand still."""
        await asyncio.to_thread(self._machine.pause)

    async def resume(self) -> None:
        """Let it go on."""
        await asyncio.to_thread(self._machine.resume)

    async def rename(self, name: str) -> None:
        """Call it something else."""
        await asyncio.to_thread(self._machine.rename, name)

    async def stats(self) -> Numbers:
        """Return what it uses."""
        return await asyncio.to_thread(self._machine.stats)

    async def inspect(self) -> dict[str, Any]:
        """Return state and plan."""
        return await asyncio.to_thread(self._machine.inspect)

    async def share(self, *words: Word) -> tuple[str, ...]:
        """Share more directories while it runs; returns their places in the guest."""
        return await asyncio.to_thread(self._machine.share, *words)

    async def unshare(self, *places: Word, force: bool = False) -> None:
        """Take shared directories away."""
        await asyncio.to_thread(partial(self._machine.unshare, *places, force=force))

    async def shares(self) -> tuple[Listed, ...]:
        """Return what is shared with it."""
        return await asyncio.to_thread(self._machine.shares)

    async def add_disk(self, word: str) -> str:
        """Give it a disk; returns its place in the guest."""
        return await asyncio.to_thread(self._machine.add_disk, word)

    async def add_network(self, word: str) -> str:
        """Give it a network card; returns what the guest calls it."""
        return await asyncio.to_thread(self._machine.add_network, word)

    async def copy_in(self, source: Word, target: Word) -> None:
        """Copy a file or a tree of the host into the guest."""
        await asyncio.to_thread(self._machine.copy_in, source, target)

    async def copy_out(self, source: Word, target: Word) -> tuple[str, ...]:
        """Copy a file or a tree of the guest to the host; returns what was left out."""
        return await asyncio.to_thread(self._machine.copy_out, source, target)

    async def snapshot(self, name: str, *, stop: bool = False) -> None:
        """Save memory, devices and disks."""
        await asyncio.to_thread(partial(self._machine.snapshot, name, stop=stop))

    async def fork(self, count: int = 1, *, names: Sequence[str] = ()) -> tuple[Domain, ...]:
        """Start domains that go on from what this one is now."""
        made = await asyncio.to_thread(partial(self._machine.fork, count, names=names))
        return tuple(Domain(one) for one in made)


class Sandbox(_Machine):
    """``cloche.Sandbox`` for asyncio: an asynchronous context manager with the same arguments."""

    def __init__(self, **options: Any) -> None:
        self._sandbox = api.Sandbox(**options)
        super().__init__(self._sandbox)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Start the machine. Cancelling it ends the machine again.

        Raises:
            ClocheError: It could not be started.
        """
        await _undone(asyncio.to_thread(self._sandbox.start), lambda _: self._sandbox.close())

    async def close(self) -> None:
        """End the machine."""
        await asyncio.to_thread(self._sandbox.close)

    async def detach(self, *, name: str = "") -> Domain:
        """Let the machine go on as a domain that outlives this program (``cloche.Sandbox.detach``).

        Raises:
            ClocheError: The machine cannot be saved; the sandbox goes on.
        """
        return Domain(await asyncio.to_thread(partial(self._sandbox.detach, name=name)))


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


async def _undone(starting: Awaitable[T], undo: Callable[[T], object]) -> T:
    """Wait for a thread's ``starting``; when that is cancelled, take back what it has started.

    The thread cannot be stopped: it comes to its end, and only then is the cancellation passed on, however often it is
    repeated meanwhile.
    """

    async def take_back() -> None:
        with suppress(ClocheError):  # what did not start need not be taken back
            await asyncio.to_thread(undo, await task)

    task = asyncio.ensure_future(starting)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        undoing = asyncio.ensure_future(take_back())
        while not undoing.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([undoing])
        undoing.result()
        raise


def _end(popen: api.Popen) -> None:
    popen.kill()
    for file in (popen.stdin, popen.stdout, popen.stderr):
        if file is not None:
            file.close()
    popen.wait()


def _same(protocol: asyncio.StreamReaderProtocol) -> asyncio.StreamReaderProtocol:
    return protocol


async def _drain(reader: asyncio.StreamReader | None) -> bytes | None:
    return None if reader is None else await reader.read()


class Domain(_Machine):
    """``cloche.Domain`` for asyncio: the same arguments and results, with ``await``."""

    def __init__(self, domain: api.Domain) -> None:
        super().__init__(domain)
        self._domain = domain

    @classmethod
    async def start(cls, args: Sequence[Word], **options: Any) -> Self:
        """Start a program in a machine of its own that outlives this program (``cloche.Domain.start``).

        Raises:
            ClocheError: It could not be started.
        """
        return cls(await asyncio.to_thread(partial(api.Domain.start, args, **options)))

    @classmethod
    async def restore(cls, snapshot: str, *, name: str = "") -> Self:
        """Start a domain that goes on from a snapshot (``cloche.Domain.restore``).

        Raises:
            ClocheError: There is none of that name, or nothing here can go on from it.
        """
        return cls(await asyncio.to_thread(partial(api.Domain.restore, snapshot, name=name)))

    @classmethod
    async def find(cls, name: str) -> Self:
        """Return the running domain that is meant (``cloche.Domain.find``).

        Raises:
            DomainError: There is none, or more than one.
        """
        return cls(await asyncio.to_thread(api.Domain.find, name))

    @classmethod
    async def list(cls, *, ended: bool = False) -> tuple[Self, ...]:
        """Return the caller's running domains, and those that have ended."""
        found = await asyncio.to_thread(partial(api.Domain.list, ended=ended))
        return tuple(cls(one) for one in found)

    async def name(self) -> str:
        """Return what it is called; empty for nothing."""
        return await asyncio.to_thread(lambda: self._domain.name)

    async def wait(self, timeout: float | None = None) -> int:
        """Wait for the domain's own program and return its status (``cloche.Domain.wait``)."""
        return await asyncio.to_thread(self._domain.wait, timeout)

    async def stop(self, grace: float = 10.0) -> None:
        """End the domain (``cloche.Domain.stop``)."""
        await asyncio.to_thread(self._domain.stop, grace)

    async def remove(self) -> None:
        """Forget a detached domain that has ended."""
        await asyncio.to_thread(self._domain.remove)

    async def logs(self) -> tuple[api.Output, ...]:
        """Return what a detached domain's program has written so far."""
        return await asyncio.to_thread(lambda: tuple(self._domain.logs()))
