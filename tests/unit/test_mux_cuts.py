"""The channel under random cuts: the host's mux against an independent agent, in one process."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloche.guest import messages
from cloche.guest.channel import MuxState
from cloche.guest.mux import Mux
from cloche.host.written import from_plain, to_plain
from unit.peer import AgentPeer

if TYPE_CHECKING:
    from cloche.guest.streams import Receiver, Sender


class Line:
    """A mux and an agent joined by a line that can lose whatever is on it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.mux = Mux()
        self.peer = AgentPeer()
        self.to_agent = bytearray()
        self.to_host = bytearray()
        self.sent: dict[int, bytearray] = {}
        self.got: dict[int, bytearray] = {}
        self.written: dict[int, bytes] = {}  # what the program wrote on each output stream
        self.senders: dict[int, Sender] = {}
        self.receivers: dict[int, Receiver] = {}
        self.controls: list[messages.Message] = []
        self.jobs = 0
        self.mux.attach()

    def exec(self) -> None:
        """Start a program with all three streams; its EXEC may still be on the way when the streams are used."""
        sender, out, err = self.mux.open_sender(), self.mux.open_receiver(), self.mux.open_receiver()
        self.jobs += 1
        self.senders[sender.stream] = sender
        self.sent[sender.stream] = bytearray()
        for receiver in (out, err):
            self.receivers[receiver.stream] = receiver
            self.got[receiver.stream] = bytearray()
        env = (self.random.randbytes(self.random.choice((10, 100_000))),)
        message = messages.Exec(
            self.jobs, sender.stream, out.stream, err.stream, 0, 0, 0, 0, 0, 0, (), 0, b"/", (b"x",), env
        )
        self.mux.send_control(messages.encode(message))

    def host_write(self, size: int) -> None:
        """The user's stdin brings bytes."""
        for stream, sender in self.senders.items():
            if not sender.finished and not sender.ended:
                data = self.random.randbytes(size)
                taken = self.mux.write(sender, data)
                assert taken <= size
                self.sent[stream] += data[:taken]

    def host_end(self) -> None:
        """The user's stdin ends."""
        self.mux.end(self.random.choice(list(self.senders.values())))

    def host_consume(self, most: int) -> None:
        """The user's stdout takes bytes."""
        for stream, receiver in self.receivers.items():
            left = most
            while chunk := receiver.peek()[:left]:
                self.got[stream] += chunk
                self.mux.consumed(receiver, len(chunk))
                left -= len(chunk)

    def host_stop(self) -> None:
        """The reader of the user's stdout goes away."""
        stream = self.random.choice(list(self.receivers))
        self.mux.stop(self.receivers[stream])

    def peer_write(self, size: int) -> None:
        """A program in the guest writes."""
        for stream, out in self.peer.outs.items():
            if stream != 1 and not out.ended:
                out.history += self.random.randbytes(size)

    def peer_end(self) -> None:
        """A program in the guest closes an output."""
        outs = [out for stream, out in self.peer.outs.items() if stream != 1]
        if outs:
            self.random.choice(outs).ended = True

    def peer_consume(self, size: int) -> None:
        """A program in the guest reads."""
        for stream in list(self.peer.ins):
            if stream:
                self.peer.consume(stream, size)

    def peer_stop(self) -> None:
        """A program in the guest closes its input."""
        streams = [stream for stream, end in self.peer.ins.items() if stream and not end.stopped]
        if streams:
            self.peer.stop(self.random.choice(streams))

    def move(self, to_agent: int, to_host: int) -> None:
        """Carry some bytes each way."""
        self.to_agent += b"".join(self.mux.data_to_send())
        self.to_host += self.peer.data_to_send(self.random.choice((1000, 65536)))
        piece, self.to_agent = bytes(self.to_agent[:to_agent]), self.to_agent[to_agent:]
        self.peer.receive(piece)
        piece, self.to_host = bytes(self.to_host[:to_host]), self.to_host[to_host:]
        self.mux.receive(piece)
        while body := self.mux.next_control():
            message = messages.decode(body)
            self.controls.append(message)
            if isinstance(message, messages.Started):
                for stream in (3 + 4 * (message.job - 1), 5 + 4 * (message.job - 1)):
                    self.mux.know(self.receivers[stream])
        self.mux.take_touched()

    def cut(self) -> None:
        """Lose an unknown part of what is on the way; what the agent wrote before may still come through."""
        del self.to_agent[self.random.randint(0, len(self.to_agent)) :]
        del self.to_host[: self.random.randint(0, len(self.to_host))]
        del self.to_host[self.random.randint(0, len(self.to_host)) :]
        self.peer.receive(bytes(self.to_agent))
        self.to_agent.clear()
        self.peer.cut()
        self.mux.attach()

    def move_house(self) -> None:
        """Save the guest, and go on with another host that knows what the first one knew when it stood still."""
        if self.mux.session is None:
            return  # nobody is saved before the agent has answered
        state = self.mux.export()
        # What comes after that is lost with the first host: the guest it was sent to is not the one that goes on.
        self.to_agent.clear()
        self.to_host.clear()
        self.peer.cut()
        self.mux = Mux.restored(from_plain(MuxState, json.loads(json.dumps(to_plain(state)))))
        for stream in list(self.senders):
            again = self.mux.sender(stream)
            if again is None:
                self.senders.pop(stream)
            else:
                self.senders[stream] = again
        for stream in list(self.receivers):
            other = self.mux.receiver(stream)
            if other is None:
                self.receivers.pop(stream)
            else:
                self.receivers[stream] = other
        self.mux.attach()

    def settle(self) -> None:
        """Carry everything until both sides are silent."""
        for _ in range(10_000):
            before = (len(self.peer.inbox), len(self.controls))
            self.move(1 << 30, 1 << 30)
            self.host_consume(1 << 30)
            self.peer_consume(1 << 30)
            if not self.to_agent and not self.to_host and not self.peer.outbox and self._idle(before):
                return
        pytest.fail("the two sides never fell silent")

    def _idle(self, before: tuple[int, int]) -> bool:
        out = b"".join(self.mux.data_to_send())
        self.to_agent += out
        self.to_host += self.peer.data_to_send()
        return not self.to_agent and not self.to_host and before == (len(self.peer.inbox), len(self.controls))

    def history_in(self, stream: int) -> bytes:
        """What a program got on an input stream."""
        end = self.peer.ins.get(stream) or self.peer.finished_in[stream]
        return bytes(end.history)

    def history_out(self, stream: int) -> bytes:
        """What a program wrote on an output stream."""
        out = self.peer.outs.get(stream) or self.peer.finished_out[stream]
        return bytes(out.history)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["host_write", "peer_write"]), st.integers(1, 100_000)),
        st.tuples(st.sampled_from(["host_consume", "peer_consume"]), st.integers(1, 200_000)),
        st.tuples(st.sampled_from(["exec", "cut", "move_house"]), st.none()),
        st.tuples(st.just("move"), st.tuples(st.integers(0, 200_000), st.integers(0, 200_000))),
        st.tuples(st.just("move"), st.tuples(st.integers(0, 100), st.integers(0, 100))),
    ),
    max_size=60,
)
ENDINGS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["host_end", "peer_end", "host_stop", "peer_stop", "cut", "move_house"]),
            st.none(),
        ),
        st.tuples(st.sampled_from(["host_write", "peer_write"]), st.integers(1, 100_000)),
        st.tuples(st.just("move"), st.tuples(st.integers(0, 100_000), st.integers(0, 100_000))),
    ),
    max_size=40,
)


def perform(line: Line, operations: list[tuple[str, object]]) -> None:
    """Do what hypothesis thought of."""
    for name, argument in operations:
        if argument is None:
            getattr(line, name)()
        elif isinstance(argument, tuple):
            line.move(*argument)
        else:
            getattr(line, name)(argument)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 30), OPERATIONS)
def test_nothing_is_lost_or_doubled(seed: int, operations: list[tuple[str, object]]) -> None:
    """Whatever is written and wherever the line is cut, both sides end with exactly what was sent."""
    line = Line(seed)
    line.exec()
    perform(line, operations)
    line.settle()
    for sender in line.senders.values():
        line.mux.end(sender)
    for out in line.peer.outs.values():
        out.ended = out is not line.peer.outs[1]
    line.settle()
    for stream, data in line.sent.items():
        assert line.history_in(stream) == data
        assert line.senders[stream].finished
    for stream, data in line.got.items():
        assert line.history_out(stream) == data
        assert line.receivers[stream].finished
    assert [type(message) for message in line.controls].count(messages.Ready) == 1
    started = [message.job for message in line.controls if isinstance(message, messages.Started)]
    assert started == list(range(1, line.jobs + 1))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 30), OPERATIONS, ENDINGS)
def test_every_stream_ends(
    seed: int, operations: list[tuple[str, object]], endings: list[tuple[str, object]]
) -> None:
    """With readers and writers leaving in any order and cuts between, every stream is forgotten by both sides."""
    line = Line(seed)
    line.exec()
    perform(line, operations + endings)
    line.settle()
    for sender in line.senders.values():
        line.mux.end(sender)
    for stream, out in line.peer.outs.items():
        out.ended = stream != 1
    line.settle()
    assert all(sender.finished for sender in line.senders.values())
    assert all(receiver.finished for receiver in line.receivers.values())
    assert set(line.peer.ins) == {0}
    assert set(line.peer.outs) == {1}
    for stream, data in line.got.items():
        assert line.history_out(stream).startswith(data)


@pytest.mark.parametrize("seed", range(5))
def test_cut_at_every_byte_of_a_greeting(seed: int) -> None:
    """An attach that is cut after any number of bytes can be made again, and a half preface confuses nobody."""
    line = Line(seed)
    line.move(1 << 20, 1 << 20)
    line.exec()
    for size in range(150):
        line.cut()
        line.move(size, size // 2)
        line.move(0, size)
    line.cut()
    line.settle()
    assert line.mux.state == "attached"
    assert len(line.peer.commands) == 1
