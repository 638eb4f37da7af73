"""Forks whose machines come up while their domain is saved: what they wait for, and what becomes of them without it."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from cloche.cli.detach import start
from cloche.domain.control.client import Control
from cloche.domain.control.fields import Nothing
from cloche.domain.control.snapshot_save import SnapshotOutline, SnapshotSave
from cloche.domain.detached import Options
from cloche.domain.domain import Domain
from cloche.domain.find import find_domain
from cloche.domain.launcher import Launcher
from cloche.domain.snapshot import complete, plan_machine, read, read_beginning
from cloche.domain.snapshotting import Again
from cloche.domain.timings import Timings
from cloche.errors import DomainError, TemplateError
from cloche.host import rundir, snapshots
from cloche.host.facts import collect_facts
from cloche.host.reactor import Reactor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cloche.domain.snapshotting import Beginning
    from cloche.errors import ClocheError
    from cloche.guest.session import Sink, Source

COUNTER = "n=0; while :; do n=$((n + 1)); echo $n; sleep 0.05; done"
PATIENCE_S = 90.0


@pytest.fixture
def parent(project: Path) -> Iterator[str]:
    """Provide the name of a domain that counts."""
    name = f"early-{os.getpid()}"
    program = f"{project}/bin/cloche"
    subprocess.run(
        [program, "run", "-d", "--share-later", "--name", name, "--", "sh", "-c", COUNTER], check=True
    )
    yield name
    subprocess.run([program, "stop", "-t", "0", name], check=True)
    subprocess.run([program, "rm", name], check=True)


@pytest.fixture
def outlined(parent: str) -> Iterator[str]:
    """Provide the directory of a snapshot of it of which nothing but the outline is there."""
    with snapshots.building() as directory:
        with Control(find_domain(parent).ident) as control:
            control.ask(SnapshotOutline(directory), Nothing)
        yield directory


def save(parent: str, directory: str) -> None:
    """Have the rest of it made."""
    with Control(find_domain(parent).ident) as control:
        control.ask(SnapshotSave(directory, "", stop=False), Nothing)


def begin(directory: str, name: str) -> Beginning:
    """Begin a fork as the command line does."""
    mask = os.umask(0)
    try:
        return start(Again(directory, name, whole=False, early=True), Options())
    finally:
        os.umask(mask)


class Fork:
    """A fork in this process."""

    def __init__(self, reactor: Reactor, directory: str) -> None:
        self.directory = directory
        self.reactor = reactor
        self.said = bytearray()
        self.ends: list[ClocheError] = []
        self.timings = Timings()
        self.plan = plan_machine(directory, read_beginning(directory), collect_facts(), "")
        self.launcher = Launcher(reactor, self.plan, self.timings)
        self.domain = Domain(reactor, self.plan, self.timings, lambda *_: self.launcher)
        self.domain.on_adopt = self._streams
        self.domain.on_end = self.ends.append

    def _streams(self, job: int) -> tuple[Source, Sink, Sink]:
        del job
        return None, self.said.extend, None

    def until(self, mark: str) -> None:
        """Go on until that has happened."""

        def is_reached() -> bool:
            return bool(self.ends) or any(one.name == mark for one in self.timings.marks)

        assert self.reactor.run_until(is_reached, PATIENCE_S)
        assert not self.ends, self.ends[0].message


def test_a_fork_comes_up_before_there_is_a_snapshot(parent: str, outlined: str) -> None:
    """Its processes run when nothing was saved yet; it goes on from what is saved then, each number once."""
    with Reactor() as reactor:
        fork = Fork(reactor, outlined)
        try:
            fork.domain.start(greet=False)
            fork.until("vmm started")
            assert set(os.listdir(outlined)) == {snapshots.OUTLINE, snapshots.MEMORY, snapshots.STATE}
            assert os.stat(f"{outlined}/{snapshots.STATE}").st_size == 0
            save(parent, outlined)
            saved = read(outlined)
            plan = complete(fork.plan, saved)
            fork.launcher.go_on(plan)
            fork.domain.go_on(plan, saved.channel)
            fork.until("guest set up")
            assert reactor.run_until(lambda: fork.said.count(b"\n") > 3, PATIENCE_S)
        finally:
            fork.domain.close()
    lines = bytes(fork.said).split(b"\n")[1:-1]
    first = int(lines[0])
    assert lines == [b"%d" % (first + number) for number in range(len(lines))]


def test_a_state_that_was_damaged_meanwhile_is_not_loaded(parent: str, outlined: str) -> None:
    """The checksum is looked at when the snapshot is there, as for a snapshot that was there before."""
    with Reactor() as reactor:
        fork = Fork(reactor, outlined)
        try:
            fork.domain.start(greet=False)
            fork.until("vmm started")
            save(parent, outlined)
            plan = complete(fork.plan, read(outlined))
            with open(f"{outlined}/{snapshots.STATE}", "r+b") as state:
                state.seek(1000)
                (byte,) = state.read(1)
                state.seek(1000)
                state.write(bytes([byte ^ 1]))
            with pytest.raises(TemplateError, match="damaged"):
                fork.launcher.go_on(plan)
        finally:
            fork.domain.close()


def test_a_fork_of_what_was_not_saved_leaves_nothing(parent: str, outlined: str) -> None:
    """Given up, whatever of it has come up by then: when that returns there is no such domain."""
    name = f"{parent}-fork"
    beginning = begin(outlined, name)
    beginning.give_up()
    assert name not in {one.name for one in rundir.find_running()}


def test_a_domain_that_changes_meanwhile_is_not_forked(
    project: Path, parent: str, outlined: str, tmp_path: Path
) -> None:
    """A share that came between outline and snapshot is no part of the machine that was started, and so it ends."""
    name = f"{parent}-fork"
    beginning = begin(outlined, name)
    subprocess.run([f"{project}/bin/cloche", "share", "add", parent, str(tmp_path)], check=True)
    save(parent, outlined)
    beginning.go_on()
    with pytest.raises(DomainError, match="changed while it was forked"):
        beginning.wait()
    assert name not in {one.name for one in rundir.find_running()}
