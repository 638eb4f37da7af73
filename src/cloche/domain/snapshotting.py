"""Snapshots and forks as the command line and the API make them (layer 5)."""

from __future__ import annotations

from cloche.domain import snapshot
from cloche.domain.control.client import Control
from cloche.domain.control.fields import Nothing
from cloche.domain.control.snapshot_save import SnapshotSave
from cloche.errors import ClocheError, SnapshotError
from cloche.host import snapshots
from cloche.host.names import check_name
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable

    Finish = Callable[[], tuple[str, str]]
    #: Begins to start such a domain; what it returns waits until that runs, and returns its identity and name.
    Start = Callable[["Again"], Finish]

#: A domain with large disks takes its time, in seconds.
_PATIENCE_S = 3600.0
_MOST_FORKS = 64


class Again(Record):
    """A domain that is to go on from a snapshot.

    Attributes:
        directory: The snapshot's.
        name: What the domain is to be called; empty for nothing.
        whole: Look at all of the snapshot's content before.
    """

    directory: str
    name: str
    whole: bool


def save(ident: str, name: str, *, stop: bool) -> None:
    """Save a running domain as the snapshot ``name``; ``stop`` ends it then.

    Raises:
        UsageError: The name cannot be one.
        SnapshotError: There is one of that name, or no room.
        DomainError: The domain cannot be saved; it goes on.
    """
    check_name(name, "snapshot")
    if name in snapshots.names():
        raise snapshots.taken(name)
    with snapshots.building() as directory, Control(ident, _PATIENCE_S) as control:
        control.ask(SnapshotSave(directory, name, stop), Nothing)


def restore(name: str, title: str, start: Start) -> tuple[str, str]:
    """Start a domain that goes on from a snapshot; returns its identity and name.

    Raises:
        SnapshotError: There is no such snapshot, or nothing here can go on from it.
        ShareError: What was shared is not there any more.
        ClocheError: It could not be started.
    """
    return start(Again(snapshots.locate(name), check_name(title) if title else "", whole=True))()


def fork(ident: str, count: int, titles: tuple[str, ...], start: Start) -> list[tuple[str, str]]:
    """Start domains that go on from what a running one is now; returns identity and name of each.

    Raises:
        SnapshotError: More than there may be.
        DomainError: The domain cannot be saved; it goes on, and there is no fork of it.
        ClocheError: One could not be started; the others run.
    """
    if not 1 <= count <= _MOST_FORKS:
        raise SnapshotError(
            f"a domain cannot be forked {count} times at once", hint=f"At most {_MOST_FORKS} times."
        )
    for title in titles:
        check_name(title)
    with snapshots.building() as directory:
        with Control(ident, _PATIENCE_S) as control:
            control.ask(SnapshotSave(directory, "", stop=False), Nothing)
        names = (*titles, *("" for _ in range(count - len(titles))))
        return _wait_for([start(Again(directory, name, whole=False)) for name in names])


def _wait_for(begun: list[Finish]) -> list[tuple[str, str]]:
    """Wait for all of them, whatever becomes of each; raises the first error."""
    started, errors = [], []
    for finish in begun:
        try:
            started.append(finish())
        except ClocheError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return started


def begin_again(again: Again) -> Finish:
    """Begin to start such a domain from a program that must not be forked."""
    from functools import partial

    from cloche.domain.detached import Options
    from cloche.domain.remote import start_detached
    from cloche.host.facts import collect_facts

    return partial(start_detached, again, collect_facts(), Options())


def check(name: str) -> str:
    """Read a whole snapshot; returns what is wrong with it, or nothing."""
    try:
        directory = snapshots.locate(name)
        snapshot.check_content(directory, snapshot.read(directory))
    except SnapshotError as error:
        return error.message
    return ""
