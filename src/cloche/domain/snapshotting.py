"""Snapshots and forks as the command line and the API make them (layer 5)."""

from __future__ import annotations

from cloche.domain.control.client import Control
from cloche.domain.control.fields import Nothing
from cloche.domain.control.snapshot_save import SnapshotOutline, SnapshotSave
from cloche.errors import ClocheError, SnapshotError, UsageError
from cloche.host import rundir, snapshots, xdg
from cloche.host.names import check_name
from cloche.record import TYPE_CHECKING, Protocol, Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.domain.detached import Begun

    #: Begins to start such a domain.
    Start = Callable[["Again"], "Beginning"]

#: A domain with large disks takes its time, in seconds.
_PATIENCE_S = 3600.0
_MOST_FORKS = 64


class Again(Record):
    """A domain that is to go on from a snapshot.

    Attributes:
        directory: The snapshot's.
        name: What the domain is to be called; empty for nothing.
        whole: Look at all of the snapshot's content before.
        early: The snapshot is still being made, and has an outline; the caller says when it is there.
    """

    directory: str
    name: str
    whole: bool
    early: bool = False


class Beginning(Protocol):
    """A domain that is being started."""

    def go_on(self) -> None:
        """Say that the snapshot is there, to one that was begun early."""
        raise NotImplementedError

    def give_up(self) -> None:
        """Say that there will be no snapshot; return when nothing of the domain is left."""
        raise NotImplementedError

    def wait(self) -> Begun:
        """Return when it runs.

        Raises:
            ClocheError: It could not be started.
        """
        raise NotImplementedError


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
    begun = start(Again(snapshots.locate(name), check_name(title) if title else "", whole=True)).wait()
    return begun.ident, begun.name


def fork(ident: str, count: int, titles: tuple[str, ...], start: Start) -> list[tuple[str, str]]:
    """Start domains that go on from what a running one is now; returns identity and name of each.

    Raises:
        UsageError: There are more names than forks, or two are the same.
        SnapshotError: More than there may be.
        DomainError: The domain cannot be saved; it goes on, and there is no fork of it.
        ClocheError: One could not be started; the others run.
    """
    if not 1 <= count <= _MOST_FORKS:
        raise SnapshotError(
            f"a domain cannot be forked {count} times at once", hint=f"At most {_MOST_FORKS} times."
        )
    if len(titles) > count:
        raise UsageError(f"{len(titles)} names are too many for {count} forks", hint="Leave some out.")
    if len(set(titles)) < len(titles):
        raise UsageError("two forks cannot be called the same", hint="Give each a name of its own, or none.")
    for title in titles:
        # Looked at again when it is taken; but what can be told before need not be undone.
        rundir.require_free(check_name(title), xdg.runtime_dir())
    names = (*titles, *("" for _ in range(count - len(titles))))
    with snapshots.building() as directory:
        beginnings: list[Beginning] = []
        try:
            with Control(ident, _PATIENCE_S) as control:
                control.ask(SnapshotOutline(directory), Nothing)
                control.begin(SnapshotSave(directory, "", stop=False))
                # Their machines come up while the domain is saved.
                beginnings += (start(Again(directory, name, whole=False, early=True)) for name in names)
                control.finish(Nothing)
        except BaseException:
            for beginning in beginnings:
                beginning.give_up()
            raise
        for beginning in beginnings:
            beginning.go_on()
        return _wait_for(beginnings)


def _wait_for(beginnings: list[Beginning]) -> list[tuple[str, str]]:
    """Wait for all of them, whatever becomes of each; raises the first error, with those that run all the same."""
    started, errors = [], []
    for beginning in beginnings:
        try:
            begun = beginning.wait()
        except ClocheError as error:
            errors.append(error)
        else:
            started.append((begun.ident, begun.name))
    if errors:
        if started:
            errors[0].detail += (f"running: {', '.join(name or ident for ident, name in started)}",)
        raise errors[0]
    return started


class BeginAgain:
    """Starts such a domain from a program that must not be forked: when it is waited for, and not before."""

    def __init__(self, again: Again) -> None:
        self._again = again._replace(early=False)

    def go_on(self) -> None:
        """Nothing was begun that would wait for it."""

    def give_up(self) -> None:
        """Nothing was begun."""

    def wait(self) -> Begun:
        """See ``Beginning``."""
        from cloche.domain.detached import Begun, Options
        from cloche.domain.remote import start_detached
        from cloche.host.facts import collect_facts

        return Begun(*start_detached(self._again, collect_facts(), Options()), wants_template=False)


def check(name: str) -> str:
    """Read a whole snapshot; returns what is wrong with it, or nothing."""
    from cloche.domain import snapshot

    try:
        directory = snapshots.locate(name)
        snapshot.check_content(directory, snapshot.read(directory))
    except SnapshotError as error:
        return error.message
    return ""
