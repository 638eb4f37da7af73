"""The pool's directory: one machine has one taker, the dead are cleared away, others' directories are not trusted."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
from typing import TYPE_CHECKING

import pytest

from cloche.domain import filling
from cloche.domain.claims import Claims
from cloche.errors import UsageError
from cloche.host import pool, poolfile
from cloche.host.pool import READY, Entry, own_key
from cloche.host.reactor import Reactor
from cloche.plan.pool import Setting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_TAKERS = 24


_made: list[Entry] = []


@pytest.fixture(autouse=True)
def _own_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        (tmp_path / name).mkdir(mode=0o700)
        monkeypatch.setenv(name, str(tmp_path / name))
    yield
    while _made:
        _made.pop().close()


def _ready(count: int) -> list[Entry]:
    entries = [Entry(own_key("k"), f"{number:012x}") for number in range(count)]
    for entry in entries:
        _made.append(entry)
        entry.publish()
    return entries


def _try(start: object, answers: object) -> None:
    start.wait()  # type: ignore[attr-defined]
    claimed = pool.claim(("k",))
    answers.put(claimed[1] if claimed else "")  # type: ignore[attr-defined]
    if claimed:
        claimed[0].close()


def _take_all_at_once() -> list[str]:
    context = multiprocessing.get_context("fork")
    start, answers = context.Event(), context.Queue()
    takers = [context.Process(target=_try, args=(start, answers)) for _ in range(_TAKERS)]
    for taker in takers:
        taker.start()
    start.set()
    got = [answers.get(timeout=60) for _ in takers]
    for taker in takers:
        taker.join()
        taker.close()
    answers.close()
    return [ident for ident in got if ident]


def test_each_machine_has_one_taker() -> None:
    """Of many at once for ten machines, ten get one each and all are different."""
    entries = _ready(10)
    got = _take_all_at_once()
    assert (len(got), len(set(got))) == (10, 10)
    assert not any(entry.is_there() for entry in entries)


def test_without_the_rename_two_get_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: who only connects, and believes that it is his, shares it with others."""
    _ready(10)
    monkeypatch.setattr("os.rename", lambda *names: None)
    got = _take_all_at_once()
    assert len(set(got)) < len(got)


def test_the_dead_are_cleared_away() -> None:
    """An entry on which nobody listens is nobody's, and is gone after the first who comes; what is no entry stays."""
    (entry,) = _ready(1)
    entry.listener.close()
    home = pool.home()
    os.close(os.open(os.path.join(home, "something"), os.O_CREAT | os.O_WRONLY))
    assert [member.state for member in pool.members()] == [READY]
    assert pool.claim(("k",)) is None
    assert pool.members() == []
    assert os.listdir(home) == ["something"]


def test_a_directory_that_others_can_write_to_is_not_used() -> None:
    """Whoever could put a socket there could run other people's programs."""
    _ready(1)
    os.chmod(pool.home(), 0o770)
    assert pool.claim(("k",)) is None
    os.chmod(pool.home(), 0o700)
    claimed = pool.claim(("k",))
    assert claimed is not None
    claimed[0].close()


def test_another_installation_makes_its_own() -> None:
    """A key of another checkout is not taken, nor one that is not ready."""
    other = Entry("k@1.2", "0" * 12)
    other.publish()
    making = Entry(own_key("k"), "1" * 12)
    assert pool.claim(("k",)) is None
    assert pool.waiting() == {"0" * 12, "1" * 12}
    for entry in (other, making):
        entry.close()


class _Machine:
    """Stands for a machine that waits."""

    is_lost = False

    def lost(self) -> None:
        self.is_lost = True


def _take_and_die(*, before: int = 0) -> bool:
    """Let somebody take a machine and die, and others come and go before that; return whether the machine notices."""
    (entry,) = _ready(1)
    machine = _Machine()
    (member,) = pool.members()
    with Reactor() as reactor:
        claims = Claims(reactor, entry, machine)  # type: ignore[arg-type]
        for _ in range(before):
            connection = pool.connect(member)
            assert connection is not None
            connection.close()
        reactor.run_until(lambda: machine.is_lost, timeout=0)
        assert not machine.is_lost
        taken = pool.take(member)
        assert taken is not None
        # One that came too late goes first: the taker is still there.
        reactor.run_until(lambda: machine.is_lost, timeout=0)
        assert not machine.is_lost
        taken.close()
        reactor.run_until(lambda: machine.is_lost, timeout=5)
        claims.close()
    return machine.is_lost


def test_a_machine_whose_taker_is_dead_is_told() -> None:
    """Without a clock: the name is gone, and nobody is connected any more."""
    assert _take_and_die()
    assert _take_and_die(before=20)


def test_a_machine_that_only_looks_at_its_visitors_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: without the look at the name, one whose taker has died waits for ever."""
    monkeypatch.setattr(Claims, "may_be_taken", lambda self: False)
    assert not _take_and_die()


def test_what_is_set_is_kept_and_bounded() -> None:
    """Settings come back as they were; too many, strange ones and another's file are refused."""
    settings = (Setting(2, 512, None, "a b", True), Setting(1))
    poolfile.write(settings)
    assert poolfile.read() == settings
    for bad in ("keep = 40", "keep = 1\ncolour = 2", 'keep = "1"', "memory_mib = 4", "keep = -1"):
        with open(pool.settings_path(), "w", encoding="utf-8") as file:
            file.write(f"[[machines]]\n{bad}\n")
        with pytest.raises(UsageError):
            poolfile.read()
    poolfile.write(())
    assert not pool.is_set()
    poolfile.write(settings)
    assert pool.is_set()
    os.chmod(pool.settings_path(), 0o666)
    with pytest.raises(UsageError, match="not yours alone"):
        poolfile.read()


def _clear_without(lock: int) -> None:
    os.close(lock)  # the copy of the fork
    filling.clear()


def test_clear_waits_for_who_fills() -> None:
    """What is just being made has no entry yet: so `clear` waits for the lock, whatever it sees."""
    os.makedirs(pool.home(), mode=0o700)
    lock = filling._lock(pool.home(), "lock")
    fcntl.flock(lock, fcntl.LOCK_EX)
    context = multiprocessing.get_context("fork")
    clearing = context.Process(target=_clear_without, args=(lock,))
    clearing.start()
    clearing.join(timeout=0.5)
    assert clearing.is_alive()
    os.close(lock)
    clearing.join(timeout=30)
    assert clearing.exitcode == 0
    clearing.close()
