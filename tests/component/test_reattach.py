"""A byte stream that is cut again and again in the middle of a transfer, with the real agent."""

from __future__ import annotations

import hashlib
import random
import socket
from typing import TYPE_CHECKING

import pytest

from cloche.guest.mux import Mux
from cloche.host.reactor import READ
from support.agents import PATIENCE_S, agent, command, cutter, guest, shell

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 200 << 20


class Stream:
    """A long pseudo-random source that remembers its checksum."""

    def __init__(self, seed: int, size: int) -> None:
        self._random = random.Random(seed)
        self._pool = self._random.randbytes(8 << 20)
        self.left = size
        self.checksum = hashlib.sha256()

    def __call__(self, size: int) -> bytes:
        """Return at most ``size`` bytes, none at the end."""
        start = self._random.randrange(len(self._pool) - size)
        data = self._pool[start : start + min(size, self.left)]
        self.left -= len(data)
        self.checksum.update(data)
        return data


def test_a_hundred_cuts_in_the_middle_of_a_transfer(tmp_path: Path) -> None:
    """200 MB through ``cat`` and back over a connection cut at least 100 times arrive complete and in order."""
    source = Stream(1, SIZE)
    got = hashlib.sha256()
    received = 0

    def sink(data: bytes) -> None:
        nonlocal received
        received += len(data)
        got.update(data)

    with (
        agent(tmp_path) as path,
        cutter(tmp_path, path, mean=3_000_000) as own,
        guest(own) as box,
    ):
        job = box.start(command("cat"), stdin=source, stdout=sink)
        assert box.wait(job, 10 * PATIENCE_S) == 0
        cuts = box.session.mux.attached_count - 1
    assert cuts >= 100
    assert received == SIZE
    assert got.digest() == source.checksum.digest()


@pytest.mark.parametrize("seed", range(3))
def test_short_lived_connections(tmp_path: Path, seed: int) -> None:
    """Programs started, fed, stopped and ended while the connection lives for a frame or two."""
    with (
        agent(tmp_path) as path,
        cutter(tmp_path, path, mean=120_000, seed=seed) as own,
        guest(path) as box,
    ):
        box.path = own
        assert box.session._socket is not None
        box.session._socket.shutdown(socket.SHUT_RDWR)
        for number in range(10):
            data = random.Random(number).randbytes(100_000)
            assert box.run(command("cat"), data) == (0, data, b"")
            assert box.run(shell(f"echo {number}; echo e >&2; exit {number}")) == (
                number,
                b"%d\n" % number,
                b"e\n",
            )
            assert box.run(command("head", "-c", "10"), bytes(300_000)) == (0, bytes(10), b"")
            pipe_end = box.start(command("yes"), stdout=bytearray().extend)
            pipe_end.signal(15)
            assert box.wait(pipe_end) == 143
        assert box.session.mux.attached_count > 10


def test_half_greetings_are_forgotten(tmp_path: Path) -> None:
    """First greetings cut after any number of bytes, answered or not, leave the agent ready for the next one."""
    mux = Mux()
    mux.attach()
    greeting = b"".join(mux.data_to_send())
    with agent(tmp_path) as path:
        for size in [*range(0, len(greeting), 5), len(greeting), len(greeting)]:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(path)
                connection.sendall(greeting[:size])
                if size == len(greeting):
                    assert connection.recv(1)
        with guest(path) as box:
            assert box.run(shell("echo alive")) == (0, b"alive\n", b"")


def test_cut_while_nothing_happens(tmp_path: Path) -> None:
    """A connection cut while a program waits is made again without the program noticing."""
    out = bytearray()
    held: list[bytes] = []
    with agent(tmp_path) as path, guest(path) as box:
        mux = box.session.mux
        job = box.start(command("cat"), stdin=lambda _size: held.pop() if held else None, stdout=out.extend)
        assert box.reactor.run_until(lambda: job.pid is not None, PATIENCE_S)
        assert job.stdin is not None
        expected = b""
        for number in range(20):
            assert box.session._socket is not None
            box.session._socket.shutdown(socket.SHUT_RDWR)
            assert box.reactor.run_until(lambda: mux.attached_count == number + 2, PATIENCE_S)  # noqa: B023
            held.append(b"%d " % number)
            expected += held[0]
            job.stdin.update()
            assert box.reactor.run_until(lambda: out == expected, PATIENCE_S)  # noqa: B023
        held.append(b"")
        job.stdin.update()
        assert box.wait(job) == 0


def test_connection_that_nobody_answers_is_made_again(tmp_path: Path) -> None:
    """A connection made again that stays without an answer, as of a port that is stuck, is dropped for the next one."""
    with agent(tmp_path) as path, guest(path) as box, socket.socket(socket.AF_UNIX) as silent:
        box.path = str(tmp_path / "silent")
        silent.bind(box.path)
        silent.listen()
        silent.setblocking(False)
        taken: list[socket.socket] = []
        box.reactor.register(silent.fileno(), READ, lambda _events: taken.append(silent.accept()[0]))
        assert box.session._socket is not None
        box.session._socket.shutdown(socket.SHUT_RDWR)
        assert box.reactor.run_until(lambda: len(taken) == 2, PATIENCE_S)
        box.path = path
        assert box.run(shell("echo alive")) == (0, b"alive\n", b"")
        assert box.session.mux.attached_count == 2
        assert taken[0].recv(1 << 16)  # the greeting, and then the end
        assert not taken[0].recv(1)
        box.reactor.unregister(silent.fileno())
        for connection in taken:
            connection.close()
