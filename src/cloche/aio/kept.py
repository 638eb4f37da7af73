"""Snapshots and the pool (layer 5b): what ``cloche.api`` has for them, with ``await``."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from cloche import api
from cloche.aio.machines import Domain

if TYPE_CHECKING:
    from typing import Self


class Snapshot:
    """``cloche.Snapshot`` for asyncio: the same arguments and results, with ``await``."""

    def __init__(self, name: str) -> None:
        self._snapshot = api.Snapshot(name)

    def __repr__(self) -> str:
        return repr(self._snapshot)

    @property
    def name(self) -> str:
        """What it is called."""
        return self._snapshot.name

    @classmethod
    async def list(cls) -> tuple[Self, ...]:
        """Return those there are (``cloche.Snapshot.list``)."""
        return tuple(cls(one.name) for one in await asyncio.to_thread(api.Snapshot.list))

    async def made(self) -> float:
        """Return when it was made, in seconds since the epoch.

        Raises:
            SnapshotError: There is none of that name, or it is damaged.
        """
        return await asyncio.to_thread(lambda: self._snapshot.made)

    async def check(self) -> None:
        """Read it whole (``cloche.Snapshot.check``).

        Raises:
            SnapshotError: There is none of that name, or it is damaged.
        """
        await asyncio.to_thread(self._snapshot.check)

    async def restore(self, *, name: str = "") -> Domain:
        """Start a domain that goes on from it (``Domain.restore``).

        Raises:
            ClocheError: There is none of that name, or nothing here can go on from it.
        """
        return await Domain.restore(self.name, name=name)

    async def delete(self) -> None:
        """Delete it (``cloche.Snapshot.delete``).

        Raises:
            SnapshotError: There is none of that name.
        """
        await asyncio.to_thread(self._snapshot.delete)


async def set_pool(
    keep: int,
    *,
    memory_mib: int | None = None,
    cpus: int | None = None,
    kernel: str | None = None,
    share_later: bool | None = None,
) -> None:
    """Have so many machines of a kind wait, and make them (``cloche.set_pool``).

    Raises:
        ClocheError: They cannot be made, or kept.
    """
    await asyncio.to_thread(
        partial(api.set_pool, keep, memory_mib=memory_mib, cpus=cpus, kernel=kernel, share_later=share_later)
    )


async def fill_pool() -> None:
    """Make the machines that are missing, and end those out of date (``cloche.fill_pool``).

    Raises:
        ClocheError: One cannot be made.
    """
    await asyncio.to_thread(api.fill_pool)


async def list_pool() -> tuple[api.Waiting, ...]:
    """Return the machines that wait (``cloche.list_pool``)."""
    return await asyncio.to_thread(api.list_pool)


async def clear_pool(*, forget: bool = False) -> int:
    """End the machines that wait, and return how many they were (``cloche.clear_pool``).

    Raises:
        HostError: What is set cannot be changed.
    """
    return await asyncio.to_thread(partial(api.clear_pool, forget=forget))
