"""Forks of one domain are strangers to each other: nothing random is the same in two.

What keeps them apart is the step that gives the kernel fresh randomness, before any program goes on. The twins leave
out the one, or the other.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cloche.domain import pausing, preserve
from cloche.domain.control.client import Control
from cloche.domain.control.fields import Nothing
from cloche.domain.control.snapshot_save import SnapshotSave
from cloche.domain.domain import Domain
from cloche.domain.find import find_domain
from cloche.domain.launcher import Launcher
from cloche.domain.prepare import prepare_plan
from cloche.domain.restore import Restore, checksum_of
from cloche.domain.snapshot import check_content, prepare, read
from cloche.domain.timings import Timings
from cloche.errors import ClocheError, SnapshotError, TemplateError
from cloche.host import snapshots
from cloche.host.facts import collect_facts
from cloche.host.reactor import Reactor
from cloche.model.guest import Clock, Entropy, Thaw
from cloche.model.request import RunRequest
from support.sequences import TELL, read_told, same_secret

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cloche.guest.session import Sink, Source
    from cloche.model.guest import Step
    from cloche.model.plan import LaunchPlan
    from support.sequences import Told

#: Draws numbers all the time, in programs that begin and in one that goes on.
DRAWS = """
import os
while True:
    print(os.urandom(16).hex(), flush=True)
"""
LINES = 300
#: A kernel takes randomness from the CPU by itself, at 6.8, 10, 15, 23 ... seconds of its life. What is saved in
#: between goes on with what it has for some seconds.
AGE_S = 10.7
PATIENCE_S = 60.0
#: Questions to the agent until all that was on its way has come, and until a program would have said more.
_SETTLED, _QUESTIONS = 20, 100


@pytest.fixture(scope="module")
def saved(project: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Provide what was saved of a domain that draws numbers."""
    name = f"drawing-{os.getpid()}"
    program = [f"{project}/bin/cloche"]
    directory = str(tmp_path_factory.mktemp("saved"))
    os.chmod(directory, 0o700)
    subprocess.run([*program, "run", "-d", "--name", name, "python3", "-c", DRAWS], check=True)
    try:
        age = 0.0
        while age < AGE_S:
            age = float(subprocess.check_output([*program, "exec", name, "cat", "/proc/uptime"]).split()[0])
        with Control(find_domain(name).ident) as control:
            control.ask(SnapshotSave(directory, "", stop=False), Nothing)
    finally:
        subprocess.run([*program, "stop", "-t", "0", name], check=True)
        subprocess.run([*program, "rm", name], check=True)
    return directory


def plan_of(directory: str) -> LaunchPlan:
    """Return the plan of a fork."""
    return prepare(directory, collect_facts(), "", whole=False)[0]


def draws(directory: str, plan: LaunchPlan) -> list[bytes]:
    """Return the first numbers that a fork's program says."""
    description = read(directory)
    said = bytearray()
    ends: list[ClocheError] = []
    with Reactor() as reactor:
        domain = Domain(reactor, plan, channel=description.channel)

        def streams(job: int) -> tuple[Source, Sink, Sink]:
            del job
            return None, said.extend, None

        domain.on_adopt = streams
        domain.on_end = ends.append
        try:
            domain.start()
            assert reactor.run_until(lambda: said.count(b"\n") > LINES or bool(ends), PATIENCE_S)
        finally:
            domain.close()
    assert not ends, ends[0].message
    # What the program had said before it was saved may come first, and its last line is not whole.
    return bytes(said).split(b"\n")[:-1]


def without(setup: tuple[Step, ...], kind: type) -> tuple[Step, ...]:
    """Return steps without those of a kind."""
    return tuple(step for step in setup if not isinstance(step, kind))


def test_forks_draw_other_numbers(saved: str) -> None:
    """From the first number on that a program draws after the fork."""
    first, second = (draws(saved, plan_of(saved)) for _ in range(2))
    both = len(set(first) & set(second))
    # What lay in the guest's pipe and in the agent when it stood still is the same in both: drawn before, said after.
    assert first[:both] == second[:both]
    assert both < LINES / 10


def test_without_fresh_randomness_forks_draw_the_same(saved: str) -> None:
    """The twin: without the step all numbers of two forks are the same."""
    plan = plan_of(saved)
    assert any(isinstance(step, Entropy) for step in plan.setup)
    weak = plan._replace(setup=without(plan.setup, Entropy))
    first, second = (draws(saved, weak) for _ in range(2))
    assert first[:LINES] == second[:LINES]


@contextmanager
def drawing(reactor: Reactor) -> Iterator[tuple[Launcher, Domain, bytearray]]:
    """Provide a domain that draws numbers, and what it has said so far."""
    plan = prepare_plan(RunRequest(argv=(b"python3", b"-c", DRAWS.encode())), collect_facts())
    launcher = Launcher(reactor, plan, Timings())
    domain = Domain(reactor, plan, launcher=lambda *_: launcher)
    said = bytearray()

    def opened() -> None:
        domain.execute(plan.command, stdout=said.extend)

    domain.on_open = opened
    try:
        domain.start()
        assert reactor.run_until(lambda: b"\n" in said, PATIENCE_S)
        yield launcher, domain, said
    finally:
        domain.close()


def goes_on(reactor: Reactor, domain: Domain, said: bytearray) -> bool:
    """Tell whether a program says more, once all that was on its way has come."""
    answers: list[object] = []

    def ask(questions: int) -> None:
        for _ in range(questions):
            answers.clear()
            domain.set_up((Clock(),), answers.append)
            assert reactor.run_until(lambda: bool(answers), PATIENCE_S)

    ask(_SETTLED)
    still = len(said)
    ask(_QUESTIONS)
    return len(said) > still


@pytest.mark.parametrize("freezes", [True, False])
def test_programs_stand_still_before_a_pause(monkeypatch: pytest.MonkeyPatch, freezes: bool) -> None:
    """When a paused machine runs, to be saved, none of them does; those of the mutant, which asks for nothing, do."""
    if not freezes:
        monkeypatch.setattr(pausing, "Freeze", Clock)
    heard: list[ClocheError | None] = []
    with Reactor() as reactor, drawing(reactor) as (_, domain, said):
        domain.pausing.pause(heard.append)
        assert reactor.run_until(lambda: len(heard) == 1, PATIENCE_S)
        domain.pausing.require_frozen()
        domain.control.resume(heard.append)
        assert reactor.run_until(lambda: len(heard) == 2, PATIENCE_S)
        assert heard == [None, None]
        assert goes_on(reactor, domain, said) is not freezes


@pytest.mark.parametrize("freezes", [True, False])
def test_programs_stand_still_before_a_save(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, freezes: bool
) -> None:
    """In what goes on from it none runs before it is told to; those of the mutant, saved as it runs, do."""
    if not freezes:
        monkeypatch.setattr(preserve, "Freeze", Clock)
    over: list[ClocheError | None] = []
    tmp_path.chmod(0o700)
    directory = str(tmp_path)
    with Reactor() as reactor, drawing(reactor) as (launcher, _, _):
        preserve.preserve(
            launcher, directory, "", stop=False, done=lambda: over.append(None), fail=over.append
        )
        assert reactor.run_until(lambda: bool(over), PATIENCE_S)
    assert over == [None]
    said = bytearray()
    opened: list[bool] = []
    plan = plan_of(directory)
    with Reactor() as reactor:
        domain = Domain(
            reactor, plan._replace(setup=without(plan.setup, Thaw)), channel=read(directory).channel
        )
        domain.on_adopt = lambda job: (None, said.extend, None)
        domain.on_open = lambda: opened.append(True)
        try:
            domain.start()
            assert reactor.run_until(lambda: bool(opened), PATIENCE_S)
            assert goes_on(reactor, domain, said) is not freezes
        finally:
            domain.close()


def test_a_damaged_state_is_found_by_its_checksum(saved: str, tmp_path: Path) -> None:
    """One bit of the devices' state; the twin, told the checksum of the damaged state, takes it."""
    plan = plan_of(saved)
    template = plan.template
    assert template is not None
    copy = tmp_path / "state"
    data = bytearray(Path(template.state.path).read_bytes())
    data[len(data) // 2] ^= 1
    copy.write_bytes(data)
    spoilt = template._replace(state=template.state._replace(path=str(copy)))
    with pytest.raises(TemplateError, match="damaged"):
        Restore.open(spoilt)
    with open(copy, "rb") as file:
        fooled = spoilt._replace(checksum=checksum_of(file.fileno()))
    taken = Restore.open(fooled)
    taken.close()
    for fd in taken.files.values():
        os.close(fd)


def test_damaged_memory_is_found_by_its_checksum(saved: str) -> None:
    """A snapshot that is kept has a checksum of its memory; what is used at once has none, and is taken as it is."""
    description = read(saved)
    assert description.memory_checksum == 0
    with pytest.raises(SnapshotError, match="the memory in it is damaged"):
        check_content(saved, description)
    prepare(saved, collect_facts(), "", whole=False)
    assert snapshots.names() is not None


@pytest.fixture
def forked(project: Path) -> Iterator[tuple[str, ...]]:
    """Provide the names of a domain that has had a socket, and of two forks of it."""
    names = tuple(f"socket-{number}-{os.getpid()}" for number in range(3))
    program = [f"{project}/bin/cloche"]
    try:
        subprocess.run(
            [*program, "run", "-d", "--privileged", "--name", names[0], "sleep", "600"], check=True
        )
        tell_of_tcp(program, names[0])
        forks = [word for name in names[1:] for word in ("--name", name)]
        subprocess.run([*program, "fork", names[0], *forks], check=True)
        yield names
    finally:
        for name in names:
            subprocess.run([*program, "stop", "-t", "0", name], check=False)
            subprocess.run([*program, "rm", name], check=False)


def tell_of_tcp(program: list[str], name: str) -> Told:
    """Return what a domain's guest tells of its secret for sequence numbers."""
    words = [*program, "exec", "--user", "root", name, "python3", "-IS", "-c", TELL]
    return read_told(subprocess.run(words, check=True, capture_output=True).stdout)


def test_forks_share_the_secret_of_connections(project: Path, forked: tuple[str, ...]) -> None:
    """What was drawn before the save stays what it was, whatever randomness comes later: SECURITY.md says so."""
    one, *others = (tell_of_tcp([f"{project}/bin/cloche"], name) for name in forked)
    assert all(same_secret(one, other) for other in others)
