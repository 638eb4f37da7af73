"""The session against an agent written for the tests: order of messages, floods, lost connections."""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from cloche.errors import ClocheError, DomainError, ProtocolError, UsageError
from cloche.guest.session import AgentSession
from cloche.host.reactor import READ, WRITE, Reactor
from cloche.model.guest import Clock, Entropy, GuestCommand, Hostname
from unit.peer import AgentPeer, frame

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cloche.guest.job import Job

COMMAND = GuestCommand((b"x",), (), b"/", 0, 0)


class Guest:
    """An AgentPeer behind socket pairs, driven by the reactor under test."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.peer = AgentPeer()
        self.near: socket.socket | None = None
        self.unsent = bytearray()
        self.connections = 0
        self.refusing = False

    def connect(self) -> socket.socket:
        """A new connection, as the session asks for."""
        self.connections += 1
        if self.refusing:
            raise ConnectionRefusedError(111, "Connection refused")
        self.hang_up()
        far, near = socket.socketpair()
        near.setblocking(False)
        self.near = near
        self.reactor.register(near.fileno(), READ, self._event)
        return far

    def hang_up(self) -> None:
        """Cut the connection."""
        if self.near is not None:
            self.reactor.unregister(self.near.fileno())
            self.near.close()
            self.near = None
            self.unsent.clear()

    def _event(self, events: int) -> None:
        assert self.near is not None
        if events & READ:
            try:
                data = self.near.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                self.hang_up()
                return
            self.peer.receive(data)
        self.flush()

    def flush(self) -> None:
        """Send what the agent has to say, as far as the socket takes it."""
        if self.near is not None:
            self.unsent += self.peer.data_to_send()
            try:
                del self.unsent[: self.near.send(self.unsent)]
            except BlockingIOError:
                pass
            self.reactor.modify(self.near.fileno(), READ | WRITE if self.unsent else READ)

    def tell(self, number: int, body: bytes = b"") -> None:
        """Say a control message."""
        self.peer.tell(number, body)
        self.flush()


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    """Provide a loop, closed at the end."""
    with Reactor() as made:
        yield made


@pytest.fixture
def guest(reactor: Reactor) -> Iterator[Guest]:
    """Provide the other side."""
    made = Guest(reactor)
    yield made
    made.hang_up()


@pytest.fixture
def session(reactor: Reactor, guest: Guest) -> Iterator[AgentSession]:
    """Provide an attached session."""
    made = AgentSession(reactor, guest.connect)
    made.attach()
    assert reactor.run_until(lambda: made.ready is not None, 10)
    yield made
    made.close()


def exited(job: Job, value: int = 0) -> bytes:
    """Body of EXITED."""
    return struct.pack("<IBIBQQQ", job.number, 0, value, 0, 1, 2, 3)


def test_a_program_from_exec_to_done(reactor: Reactor, guest: Guest, session: AgentSession) -> None:
    """Input and output flow, and a job is done when EXITED and the end of its output have come."""
    got = bytearray()
    job = session.exec(COMMAND, stdin=b"question", stdout=got.extend)
    assert reactor.run_until(lambda: job.pid is not None, 10)
    assert reactor.run_until(lambda: guest.peer.ins[2].final == 8, 10)
    guest.peer.consume(2, 8)
    guest.peer.outs[3].history += b"answer"
    guest.tell(70, exited(job, 7))
    assert reactor.run_until(lambda: job.exited is not None, 10)
    assert not job.done
    guest.peer.outs[3].ended = True
    guest.flush()
    assert reactor.run_until(lambda: job.done, 10)
    assert (bytes(got), job.status, bytes(guest.peer.finished_in[2].history)) == (b"answer", 7, b"question")


def test_set_up_is_filled_in_when_it_is_sent(reactor: Reactor, guest: Guest) -> None:
    """What is asked for before the attach waits for it, and clock and seed are those of the sending."""
    session = AgentSession(reactor, guest.connect)
    answers: list[object] = []
    session.setup([Clock(), Entropy(), Hostname(b"h")], answers.append)
    session.attach()
    assert reactor.run_until(lambda: bool(guest.peer.commands), 10)
    body = guest.peer.commands[0]
    assert body[:9] == b"\x01" + struct.pack("<II", 1, 3)
    assert struct.unpack_from("<Q", body, 14)[0] > 10**18
    assert struct.unpack_from("<BII", body, 22) == (10, 68, 64)
    guest.tell(66, struct.pack("<I", 1))
    assert reactor.run_until(lambda: bool(answers), 10)
    session.close()


def test_a_program_that_cannot_be_started(reactor: Reactor, guest: Guest, session: AgentSession) -> None:
    """FAILED ends the job at once, with the agent's words escaped."""
    guest.peer._handle = lambda *_args: None  # type: ignore[method-assign]  # an agent that does not start it
    job = session.exec(COMMAND, stdin=b"x", stdout=bytearray().extend)
    reactor.run_once(0)
    guest.tell(69, struct.pack("<III", job.number, 2, 5) + b"no\x1b[m")
    assert reactor.run_until(lambda: job.done, 10)
    assert job.failure is not None
    assert (job.failure.errno, job.failure_text, job.status) == (2, "no\\x1b[m", None)
    assert set(session.mux._senders) == {0}
    assert set(session.mux._receivers) == {1}


WRONG: dict[str, tuple[int, bytes]] = {
    "ready twice": (65, bytes(16)),
    "answer to no set-up": (66, struct.pack("<I", 9)),
    "failure of no set-up": (67, struct.pack("<IIII", 9, 0, 0, 0)),
    "answer to no sync": (74, struct.pack("<I", 9)),
    "unknown job": (68, struct.pack("<II", 9, 1)),
    "job 0": (72, struct.pack("<I", 0)),
    "started twice": (68, struct.pack("<II", 1, 1)),
    "failed after started": (69, struct.pack("<III", 1, 1, 0)),
    "unknown message": (99, b""),
    "a message for the agent": (5, b""),
    "trailing bytes": (72, bytes(5)),
}


@pytest.mark.parametrize("name", WRONG)
def test_messages_out_of_order_end_the_session(
    reactor: Reactor, guest: Guest, session: AgentSession, name: str
) -> None:
    """An agent that says what it must not is told apart from one that is gone, and nothing is said to it any more."""
    lost: list[ClocheError] = []
    session.on_lost = lost.append
    job = session.exec(COMMAND, stdin=b"", stdout=bytearray().extend)
    assert reactor.run_until(lambda: job.pid is not None, 10)
    guest.tell(*WRONG[name])
    assert reactor.run_until(lambda: bool(lost), 10)
    assert isinstance(lost[0], ProtocolError)
    assert session.lost is lost[0]
    assert reactor.run_until(lambda: guest.near is None, 10)
    assert guest.connections == 1


def test_protocol_errors_come_out_of_the_loop(reactor: Reactor, guest: Guest, session: AgentSession) -> None:
    """Without on_lost the error is raised."""
    assert guest.near is not None
    guest.near.sendall(frame(9, 9))
    with pytest.raises(ProtocolError):
        reactor.run_until(lambda: False, 10)
    assert session.lost is not None


def test_a_flood_of_log_messages(reactor: Reactor, guest: Guest, session: AgentSession) -> None:
    """Most of a flood is dropped and counted, the rest is escaped, and other messages still get through."""
    seen: list[tuple[int, str]] = []
    session.on_log = lambda level, text: seen.append((level, text))
    synced: list[bool] = []
    session.sync(lambda: synced.append(True))
    text = b"\x1b]0;evil\x07" + bytes(2000)
    for _ in range(5000):
        guest.peer.tell(73, struct.pack("<BI", 1, len(text)) + text)
    guest.peer.tell(74, struct.pack("<I", 1))

    guest.flush()
    assert reactor.run_until(lambda: bool(synced), 60)
    assert 100 < len(seen) < 1000
    assert all(text.isprintable() and len(text) <= 1003 for _, text in seen)
    assert seen[0][1].startswith("\\x1b]0;evil\\x07")


def test_a_lost_agent_is_told_after_some_attempts(
    reactor: Reactor, guest: Guest, session: AgentSession
) -> None:
    """When nobody answers the connection any more, the session gives up with a reason."""
    lost: list[ClocheError] = []
    session.on_lost = lost.append
    guest.refusing = True
    guest.hang_up()
    assert reactor.run_until(lambda: bool(lost), 60)
    assert isinstance(lost[0], DomainError)
    assert "Connection refused" in lost[0].message
    assert 3 < guest.connections < 20


def test_without_resume_a_cut_is_the_end(reactor: Reactor, guest: Guest) -> None:
    """A session over a connection that cannot be made anew is lost at the first cut."""
    session = AgentSession(reactor, guest.connect, resume=False)
    lost: list[ClocheError] = []
    session.on_lost = lost.append
    session.attach()
    assert reactor.run_until(lambda: session.ready is not None, 10)
    guest.hang_up()
    assert reactor.run_until(lambda: bool(lost), 10)
    assert guest.connections == 1


def test_the_end_after_poweroff_is_no_loss(reactor: Reactor, guest: Guest, session: AgentSession) -> None:
    """A connection that ends after POWEROFF is closed, not lost, and not made again."""
    closed: list[bool] = []
    session.on_closed = lambda: closed.append(True)
    session.poweroff()
    assert reactor.run_until(lambda: guest.peer.commands == [b"\x05"], 10)
    guest.hang_up()
    assert reactor.run_until(lambda: bool(closed), 10)
    assert session.lost is None
    assert guest.connections == 1


@pytest.mark.parametrize("kind", ["too big", "closed descriptor"])
def test_what_cannot_be_executed_leaves_nothing(session: AgentSession, kind: str) -> None:
    """An exec that is refused on the host raises at once and leaves no stream and no watched descriptor."""
    watched = set(session.reactor._watches)
    reading, writing = os.pipe()
    command = COMMAND._replace(env=(bytes(5 << 20),)) if kind == "too big" else COMMAND
    expected: type[Exception] = UsageError if kind == "too big" else OSError
    with pytest.raises(expected):
        session.exec(command, stdin=reading, stdout=writing, stderr=writing if kind == "too big" else 999)
    assert set(session.mux._senders) == {0}
    assert set(session.mux._receivers) == {1}
    assert set(session.reactor._watches) == watched
    os.close(reading)
    os.close(writing)


def test_reader_of_stdout_that_leaves_is_told_to_the_agent(
    reactor: Reactor, guest: Guest, session: AgentSession
) -> None:
    """When the reader of an idle stdout goes away, STOP reaches the agent without a byte being written."""
    reading, writing = os.pipe()
    job = session.exec(COMMAND, stdout=writing)
    os.close(writing)
    assert reactor.run_until(lambda: job.pid is not None, 10)
    os.close(reading)
    assert reactor.run_until(lambda: guest.peer.outs[3].aborted, 10)
    guest.tell(70, exited(job, 0))
    assert reactor.run_until(lambda: job.done, 10)
    assert job.output_error() is None


def test_full_disk_stops_the_program_and_is_reported(
    reactor: Reactor, guest: Guest, session: AgentSession
) -> None:
    """A write that fails for another reason than a reader that left stops the stream and is kept."""
    full = os.open("/dev/full", os.O_WRONLY)
    job = session.exec(COMMAND, stdout=full)
    os.close(full)
    assert reactor.run_until(lambda: job.pid is not None, 10)
    guest.peer.outs[3].history += b"x"
    guest.flush()
    assert reactor.run_until(lambda: guest.peer.outs[3].aborted, 10)
    error = job.output_error()
    assert error is not None
    assert error.errno == 28


def test_stop_ends_the_reading_of_stdin(reactor: Reactor, guest: Guest, session: AgentSession) -> None:
    """When the program closes its input, the host lets go of its source."""
    reading, writing = os.pipe()
    job = session.exec(COMMAND, stdin=reading)
    os.close(reading)
    assert reactor.run_until(lambda: job.pid is not None, 10)
    guest.peer.stop(2)
    guest.flush()
    assert reactor.run_until(lambda: 2 in guest.peer.finished_in, 10)
    with pytest.raises(BrokenPipeError):
        os.write(writing, b"x")
    os.close(writing)


def test_input_is_not_read_beyond_the_window(reactor: Reactor, guest: Guest, session: AgentSession) -> None:
    """A program that does not read makes the host stop reading after one window."""
    calls = 0

    def source(size: int) -> bytes:
        nonlocal calls
        calls += size
        return bytes(size)

    session.exec(COMMAND, stdin=source)
    assert reactor.run_until(lambda: 2 in guest.peer.ins and len(guest.peer.ins[2].history) == 262144, 10)
    reactor.run_once(0)
    assert calls == 262144
