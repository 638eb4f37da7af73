"""Saved domains (layer 5b): which there are, whether they are intact, and going on from one."""

from __future__ import annotations

from cloche.domain.snapshot import read
from cloche.domain.snapshotting import check
from cloche.errors import SnapshotError
from cloche.host import snapshots
from cloche.host.names import check_name
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self

    from cloche.api.domain import Domain


class Snapshot:
    """A snapshot of the caller's, by its name; ``Domain.snapshot`` makes one.

    Args:
        name: Its name; whether there is such a one shows when something is asked of it.

    Raises:
        UsageError: It cannot be a name.
    """

    def __init__(self, name: str) -> None:
        self.name = check_name(name, "snapshot")

    def __repr__(self) -> str:
        return f"Snapshot({self.name!r})"

    @classmethod
    def list(cls) -> tuple[Self, ...]:
        """Return those there are (``cloche snapshot list``)."""
        return tuple(cls(name) for name in snapshots.names())

    @property
    def made(self) -> float:
        """When it was made, in seconds since the epoch.

        Raises:
            SnapshotError: There is none of that name, or it is damaged.
        """
        return read(snapshots.locate(self.name)).made

    def check(self) -> None:
        """Read it whole (``cloche snapshot list --check``).

        Raises:
            SnapshotError: There is none of that name, or it is damaged.
        """
        damage = check(self.name)
        if damage:
            raise SnapshotError(damage)

    def restore(self, *, name: str = "") -> Domain:
        """Start a domain that goes on from it (``Domain.restore``).

        Raises:
            ClocheError: There is none of that name, or nothing here can go on from it.
        """
        from cloche.api.domain import Domain

        return Domain.restore(self.name, name=name)

    def delete(self) -> None:
        """Delete it; domains that go on from it are not disturbed (``cloche snapshot delete``).

        Raises:
            SnapshotError: There is none of that name.
        """
        snapshots.delete(self.name)
