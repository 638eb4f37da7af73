"""``Sandbox`` and ``Domain`` (layer 5b): the methods of those in ``cloche.api``, with ``await``."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from cloche import api
from cloche.aio.programs import Programs
from cloche.aio.threads import aside, undone

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from types import TracebackType
    from typing import Self

    from cloche.api.programs import Word
    from cloche.domain.control.share_list import Listed
    from cloche.domain.numbers import Numbers


class Machine(Programs):
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


class Sandbox(Machine):
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
        await undone(asyncio.to_thread(self._sandbox.start), lambda _: self._sandbox.close())

    async def close(self) -> None:
        """End the machine."""
        await asyncio.to_thread(self._sandbox.close)

    async def detach(self, *, name: str = "") -> Domain:
        """Let the machine go on as a domain that outlives this program (``cloche.Sandbox.detach``).

        Raises:
            ClocheError: The machine cannot be saved; the sandbox goes on.
        """
        return Domain(await asyncio.to_thread(partial(self._sandbox.detach, name=name)))


class Domain(Machine):
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
        return await aside(partial(self._domain.wait, timeout))

    async def stop(self, grace: float = 10.0) -> None:
        """End the domain (``cloche.Domain.stop``)."""
        await asyncio.to_thread(self._domain.stop, grace)

    async def remove(self) -> None:
        """Forget a detached domain that has ended."""
        await asyncio.to_thread(self._domain.remove)

    async def logs(self, *, follow: bool = False) -> AsyncIterator[api.Output]:
        """Give what a detached domain's program has written (``cloche.Domain.logs``), for ``async for``.

        Raises:
            DomainError: It is not a detached domain's.
        """
        pieces = self._domain.logs(follow=follow)
        while True:
            piece = await aside(lambda: next(pieces, None))
            if piece is None:
                return
            yield piece
