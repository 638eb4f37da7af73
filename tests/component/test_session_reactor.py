"""The event loop and non-blocking I/O on shared descriptors, with real pipes, terminals, files and signals."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import signal
import socket
import threading
import tty
from typing import TYPE_CHECKING

import pytest

from cloche.guest.fdio import open_reader, open_writer
from cloche.host.reactor import ERROR, HANGUP, READ, WRITE, Reactor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    """Provide a loop, closed at the end."""
    with Reactor() as made:
        yield made


def test_pipe_becomes_readable_and_hangs_up(reactor: Reactor) -> None:
    """Readiness arrives with its events, and a closed writer is told even when nothing is asked for."""
    reading, writing = os.pipe()
    seen: list[int] = []
    reactor.register(reading, READ, seen.append)
    os.write(writing, b"x")
    assert reactor.run_until(lambda: bool(seen), 10)
    assert seen[0] & READ
    reactor.modify(reading, 0)
    os.close(writing)
    assert reactor.run_until(lambda: bool(seen[-1] & HANGUP), 10)
    reactor.unregister(reading)
    os.close(reading)


def test_reader_that_leaves_an_idle_pipe_is_noticed(reactor: Reactor) -> None:
    """With no events asked for, a pipe without a reader still reports an error."""
    reading, writing = os.pipe()
    seen: list[int] = []
    reactor.register(writing, 0, seen.append)
    os.close(reading)
    assert reactor.run_until(lambda: bool(seen), 10)
    assert seen[0] & ERROR
    reactor.unregister(writing)
    os.close(writing)


@pytest.mark.parametrize("kind", ["/dev/null", "regular"])
def test_what_epoll_refuses_is_always_ready(reactor: Reactor, tmp_path: Path, kind: str) -> None:
    """Regular files and /dev/null are ready at once, until nothing is asked for."""
    path = tmp_path / "file" if kind == "regular" else kind
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    seen: list[int] = []
    reactor.register(fd, READ, seen.append)
    reactor.run_once()
    reactor.modify(fd, 0)
    reactor.run_once(0)
    assert seen == [READ]
    reactor.modify(fd, WRITE)
    reactor.run_once()
    assert seen == [READ, WRITE]
    reactor.unregister(fd)
    reactor.run_once(0)
    assert len(seen) == 2
    os.close(fd)


def test_timers_fire_in_order_and_can_be_cancelled(reactor: Reactor) -> None:
    """Timers come in the order of their times, equal times in the order they were made."""
    order: list[int] = []
    now = reactor.time()
    reactor.call_at(now + 0.002, lambda: order.append(3))
    reactor.call_at(now, lambda: order.append(1))
    reactor.call_at(now, lambda: order.append(2))
    reactor.call_at(now + 0.001, lambda: order.append(9)).cancel()
    assert reactor.run_until(lambda: len(order) == 3, 10)
    assert order == [1, 2, 3]


def test_another_thread_wakes_the_loop(reactor: Reactor) -> None:
    """call_soon_threadsafe ends a wait that nothing else would end."""
    seen: list[int] = []
    thread = threading.Thread(target=lambda: reactor.call_soon_threadsafe(lambda: seen.append(1)))
    reactor.call_soon(thread.start)
    reactor.run_until(lambda: bool(seen))
    thread.join()
    assert seen == [1]


def test_signals_arrive_in_the_loop(reactor: Reactor) -> None:
    """A signal calls its callback from the loop, and removing it restores the old handler."""
    before = signal.getsignal(signal.SIGUSR1)
    seen: list[int] = []
    reactor.add_signal(signal.SIGUSR1, seen.append)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert reactor.run_until(lambda: bool(seen), 10)
    assert seen == [signal.SIGUSR1]
    reactor.remove_signal(signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) is before


def test_exceptions_come_out_and_nothing_is_lost(reactor: Reactor) -> None:
    """What a callback raises comes out of the loop, and the other callbacks still run afterwards."""
    seen: list[int] = []
    reactor.call_soon(lambda: seen.append(1))
    reactor.call_soon(lambda: seen.remove(9))
    reactor.call_soon(lambda: seen.append(2))
    with pytest.raises(ValueError, match="not in list"):
        reactor.run_once(0)
    reactor.run_once(0)
    assert seen == [1, 2]


def test_event_of_a_closed_descriptor_does_not_reach_its_successor(reactor: Reactor) -> None:
    """A number closed and taken again within a turn does not get the old one's event."""
    pairs = [os.pipe() for _ in range(2)]
    wrong: list[int] = []
    served: list[int] = []

    def replace(index: int) -> None:
        other = pairs[1 - index][0]
        if not served:
            reactor.unregister(other)
            os.dup2(idle, other)
            reactor.register(other, READ, wrong.append)
        served.append(other)

    idle, idle_writer = os.pipe()
    for index in range(2):
        os.write(pairs[index][1], b"x")
    reactor.register(pairs[0][0], READ, lambda _events: replace(0))
    reactor.register(pairs[1][0], READ, lambda _events: replace(1))
    reactor.run_once()
    assert len(served) == 1
    assert not wrong
    for fd in (*pairs[0], *pairs[1], idle, idle_writer):
        os.close(fd)


def flags(fd: int) -> int:
    """The status flags of the open file description."""
    return fcntl.fcntl(fd, fcntl.F_GETFL)


def refuse(path: str, *_: object) -> int:
    """Stand in for open(2) of what belongs to somebody else."""
    raise PermissionError(errno.EACCES, "Permission denied", path)


@pytest.mark.parametrize("kind", ["pipe", "pipe of another's", "socket", "terminal"])
def test_shared_descriptions_never_block_and_are_left_as_they_are(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads and writes return at once on blocking descriptors, whose flags stay, and lose no byte."""
    if kind == "pipe of another's":
        # What the kernel answers whoever may not open the file again.
        monkeypatch.setattr(os, "open", refuse)
        kind = "pipe"
    if kind == "pipe":
        near_end, far_end = os.pipe()
    elif kind == "socket":
        far, near = socket.socketpair()
        near_end, far_end = near.detach(), far.detach()
    else:
        far_end, near_end = pty.openpty()
        tty.setraw(near_end)
    source, sink = (near_end, far_end)
    before = flags(near_end), flags(far_end)
    reader = open_reader(source)
    assert reader.read(10) is None
    os.write(sink, b"abc")
    if kind == "terminal":  # its line discipline hands bytes over in the background
        with Reactor() as reactor:
            ready: list[int] = []
            reactor.register(reader.fileno(), READ, ready.append)
            assert reactor.run_until(lambda: bool(ready), 10)
    assert reader.read(10) == b"abc"
    assert reader.read(10) is None
    reader.close()
    # Write the other way until it is full: for a terminal and a socket the near end, for a pipe its writer.
    out, back = (far_end, near_end) if kind == "pipe" else (near_end, far_end)
    writer = open_writer(out)
    data = bytes(range(256)) * 4096
    total = 0
    while taken := writer.write(data[total : total + 65536]):
        total += taken
    assert total >= 1024
    got = bytearray()
    while len(got) < len(data):
        while total < len(data) and (taken := writer.write(data[total : total + 65536])):
            total += taken
        got += os.read(back, 65536)
    assert got == data
    writer.close()
    assert (flags(near_end), flags(far_end)) == before
    os.close(near_end)
    os.close(far_end)


def test_pipe_without_reader_and_without_writer() -> None:
    """A pipe nobody reads is a broken pipe, one nobody writes is at its end."""
    reading, writing = os.pipe()
    writer = open_writer(writing)
    reader = open_reader(reading)
    os.close(reading)
    os.close(writing)
    assert writer.write(b"last") == 4
    writer.close()
    assert reader.read(10) == b"last"
    assert reader.read(10) == b""
    reader.close()
    reading, writing = os.pipe()
    writer = open_writer(writing)
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        writer.write(b"x")
    writer.close()
    os.close(writing)


def test_regular_files_keep_their_shared_offset(tmp_path: Path) -> None:
    """Writing goes on where the shared description stands, as ``(a; b) > file`` needs."""
    fd = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"one ")
    writer = open_writer(fd)
    assert writer.write(b"two ") == 4
    writer.close()
    os.write(fd, b"three")
    assert (tmp_path / "out").read_bytes() == b"one two three"
    os.close(fd)


def test_a_ptys_master_is_not_opened_anew() -> None:
    """Writing to a pty's master reaches its own slave."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    writer = open_writer(master)
    assert writer.write(b"hello") == 5
    assert os.read(slave, 10) == b"hello"
    writer.close()
    os.close(master)
    os.close(slave)
