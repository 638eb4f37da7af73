"""Forks of one domain are strangers to each other: nothing random is the same in two.

What keeps them apart is the step that gives the kernel fresh randomness, before any program goes on. The twins leave
out the one, or the other.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cloche.domain.control.client import Control
from cloche.domain.control.fields import Nothing
from cloche.domain.control.snapshot_save import SnapshotSave
from cloche.domain.domain import Domain
from cloche.domain.find import find_domain
from cloche.domain.restore import Restore, checksum_of
from cloche.domain.snapshot import check_content, prepare, read
from cloche.errors import ClocheError, SnapshotError, TemplateError
from cloche.host import snapshots
from cloche.host.facts import collect_facts
from cloche.host.reactor import Reactor
from cloche.model.guest import Clock, Entropy, Thaw
from support.sequences import TELL, read_told, same_secret

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cloche.domain.sharing import GuestAnswer
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


def round_trip(reactor: Reactor, domain: Domain) -> None:
    """Ask the agent something and wait for the answer."""
    answers: list[GuestAnswer] = []
    domain._ask_guest((Clock(),), False, answers.append)
    assert reactor.run_until(lambda: bool(answers), PATIENCE_S)
    assert not answers[0].errno


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


def test_programs_stand_still_until_then(saved: str) -> None:
    """The twin of the other half: a fork that nobody tells to go on says nothing new."""
    plan = plan_of(saved)
    assert isinstance(plan.setup[-1], Thaw)
    said = bytearray()
    opened: list[bool] = []
    with Reactor() as reactor:
        domain = Domain(reactor, plan._replace(setup=without(plan.setup, Thaw)), channel=read(saved).channel)
        domain.on_adopt = lambda job: (None, said.extend, None)
        domain.on_open = lambda: opened.append(True)
        try:
            domain.start()
            assert reactor.run_until(lambda: bool(opened), PATIENCE_S)
            for _ in range(_SETTLED):
                round_trip(reactor, domain)
            still = len(said)
            # What the guest had said before it stood still: a pipe, the agent's window.
            assert still < 1 << 19
            for _ in range(_QUESTIONS):
                round_trip(reactor, domain)
            assert len(said) == still
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
