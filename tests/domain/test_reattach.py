"""A machine's control port whose byte stream is cut again and again in the middle of a transfer.

QEMU listens on the port's socket and takes one connection after the other. At a cut, bytes are lost in both directions:
what the host has written and QEMU has not yet read (it closes its end at once when the guest's buffers are full), and
what QEMU has written and the host has not read. Nobody is told how many. The offsets of the channel make it whole.
"""

from __future__ import annotations

import hashlib
import random
import socket
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from cloche.domain.domain import Domain
from cloche.domain.launcher import Launcher
from cloche.domain.prepare import prepare_plan
from cloche.domain.states import State
from cloche.guest.streams import Sender
from cloche.host.facts import collect_facts
from cloche.host.reactor import Reactor
from cloche.model.request import RunRequest
from support.agents import cutter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cloche.errors import ClocheError

MIB = 1 << 20
#: How long a transfer may take before the test fails: a busy machine, emulated.
PATIENCE_S = 300.0


class Source:
    """Pseudo-random bytes that remember their checksum."""

    def __init__(self, size: int) -> None:
        self._pool = random.Random(1).randbytes(8 * MIB)
        self._chance = random.Random(2)
        self.left = size
        self.checksum = hashlib.sha256()

    def __call__(self, size: int) -> bytes:
        """Return at most ``size`` bytes, none at the end."""
        start = self._chance.randrange(len(self._pool) - size)
        data = self._pool[start : start + min(size, self.left)]
        self.left -= len(data)
        self.checksum.update(data)
        return data


class Transfer:
    """``cat`` in a real machine, both ways, over a control port that is cut after about ``mean`` bytes.

    Attributes:
        cuts: How often the byte stream was made again.
        received: Bytes that came back.
    """

    def __init__(self, directory: Path, size: int, mean: int) -> None:
        self.source = Source(size)
        self.checksum = hashlib.sha256()
        self.received = 0
        with Reactor() as reactor, machine(reactor, directory, mean) as domain:
            job = domain.execute(domain.plan.command, stdin=self.source, stdout=self._take)
            assert reactor.run_until(lambda: job.done or domain.state is State.ENDED, PATIENCE_S)
            assert domain.state is State.RUNNING
            assert job.status == 0
            assert domain._session is not None
            self.cuts = domain._session.mux.attached_count - 1

    def _take(self, data: bytes) -> None:
        self.received += len(data)
        self.checksum.update(data)

    @property
    def is_whole(self) -> bool:
        """Whether exactly what was sent came back."""
        return self.checksum.digest() == self.source.checksum.digest()


@contextmanager
def machine(reactor: Reactor, directory: Path, mean: int) -> Iterator[Domain]:
    """Start a machine for ``cat`` with something in front of its control port that cuts connections."""
    cut: list[str] = []

    class Cut(Launcher):
        def connect(self) -> socket.socket:
            assert self._directory is not None
            if not cut:
                real = self._directory.file(f"{self.plan.control}.sock")
                cut.append(proxy.enter_context(cutter(directory, real, mean=mean)))
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(cut[0])
            return connection

    errors: list[ClocheError] = []
    with ExitStack() as proxy:
        plan = prepare_plan(RunRequest(argv=(b"cat",)), collect_facts())
        domain = Domain(reactor, plan, launcher=Cut)
        domain.on_end = errors.append
        try:
            domain.start()
            assert reactor.run_until(lambda: domain.state is State.RUNNING or bool(errors), PATIENCE_S)
            assert not errors, errors[0].message
            yield domain
        finally:
            domain.close()


@pytest.mark.long
def test_a_hundred_cuts_of_a_machines_control_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 MB through ``cat`` of a machine whose control port is cut 100 times come back complete and in order."""
    again: list[int] = []
    rewind = Sender._rewind

    def counting(sender: Sender, received: int) -> None:
        again.append(sender.sent - received)
        rewind(sender, received)

    monkeypatch.setattr(Sender, "_rewind", counting)
    transfer = Transfer(tmp_path, 200_000_000, 3_000_000)
    assert transfer.cuts >= 100
    assert transfer.received == 200_000_000
    assert transfer.is_whole
    assert sum(again) > 0  # bytes were lost on the way, and sent once more


@pytest.mark.long
def test_without_sending_again_bytes_are_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: when what the guest did not get is not sent again, it is missing."""

    def forgetful(sender: Sender, received: int) -> None:
        lost = sender.sent - received
        sender._held.clear()
        sender._held_base = sender.sent = received
        sender.next -= lost

    monkeypatch.setattr(Sender, "_rewind", forgetful)
    transfer = Transfer(tmp_path, 40_000_000, 1_000_000)
    assert transfer.received < 40_000_000
    assert not transfer.is_whole
