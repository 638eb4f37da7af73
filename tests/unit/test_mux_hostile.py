"""What the host's mux refuses from a guest, and what it bounds."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloche.errors import ProtocolError
from cloche.guest import wire
from cloche.guest.mux import ATTACHED, ATTACHING, Mux
from unit.peer import PREFACE, AgentPeer, frame

if TYPE_CHECKING:
    from cloche.guest.streams import Receiver, Sender

WINDOW = wire.WINDOW_SIZE
#: What the peer's READY takes on stream 1.
READY_SIZE = 23


def attached() -> tuple[Mux, Sender, Receiver]:
    """A mux that has attached and has one job's stdin (with credit) and stdout."""
    mux = Mux()
    sender, receiver = mux.open_sender(), mux.open_receiver()
    mux.attach()
    peer = AgentPeer()
    peer.receive(b"".join(mux.data_to_send()))
    mux.receive(peer.data_to_send())
    assert mux.state == ATTACHED
    mux.receive(wire.window_frame(2, 0, WINDOW))
    mux.data_to_send()
    mux.take_touched()
    while mux.next_control():
        pass
    return mux, sender, receiver


def data(stream: int, offset: int, payload: bytes) -> bytes:
    """A DATA frame."""
    return wire.data_header(stream, offset, len(payload)) + payload + b"\n"


REFUSED = {
    "unknown type": frame(7, 3),
    "type 0": frame(0, 3),
    "unknown flag": frame(3, 3, bytes(9), 1),
    "zero not zero": b"\x03\0\1\0" + frame(3, 3, bytes(9))[4:],
    "wrong trailer": frame(3, 3, bytes(9))[:-1] + b"\x0b",
    "empty data": frame(3, 3, bytes(8)),
    "too much data": frame(3, 3, bytes(65545)),
    "length of 4 GiB": b"\x03\0\0\0\3\0\0\0\xff\xff\xff\xff\0",
    "short window": frame(4, 2, bytes(15)),
    "long stop": frame(6, 2, b"x"),
    "attach from the guest": frame(1, 0, bytes(38)),
    "attached unasked": frame(2, 0, bytes(39)),
    "data on an unknown stream": data(7, 0, b"x"),
    "data on a stream to the agent": data(2, 0, b"x"),
    "window on a stream to the host": wire.window_frame(3, 0, WINDOW),
    "stop on a stream to the host": wire.stop_frame(3),
    "stop of control": wire.stop_frame(0),
    "end of control": wire.eof_frame(1, 49),
    "data with a gap": data(3, 1, b"x"),
    "data doubled": data(3, 0, b"x") + data(3, 0, b"x"),
    "data after the end": wire.eof_frame(3, 0) + data(3, 0, b"x"),
    "end with a gap": wire.eof_frame(3, 1),
    "aborted before what came": data(3, 0, b"xy") + wire.eof_frame(3, 1, aborted=True),
    "aborted at an absurd offset": wire.eof_frame(3, 1 << 63, aborted=True),
    "acknowledges too much": wire.window_frame(2, 1, WINDOW + 1),
    "limit falls": wire.window_frame(2, 0, WINDOW - 1),
    "limit beyond the window": wire.window_frame(2, 0, WINDOW + 1),
    "finished before the end": wire.window_frame(2, 0, WINDOW, fin=True),
    "passes the limit": b"".join(data(3, at, bytes(65536)) for at in range(0, WINDOW, 65536))
    + data(3, WINDOW, b"x"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    """Each thing an agent must not say is a protocol error."""
    mux, _, _ = attached()
    with pytest.raises(ProtocolError):
        mux.receive(REFUSED[name])


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_bytewise(name: str) -> None:
    """The same holds when the bytes come one at a time."""
    mux, _, _ = attached()

    def feed() -> None:
        for byte in REFUSED[name]:
            mux.receive(bytes((byte,)))

    with pytest.raises(ProtocolError):
        feed()


@pytest.mark.parametrize(
    "body",
    [b"\0\0\0\0", b"\1\0\1\0", b"\xff\xff\xff\xff"],
    ids=["empty", "one byte too long", "4 GiB"],
)
def test_refuses_control_lengths(body: bytes) -> None:
    """A control message of an impossible length is refused from its first four bytes."""
    mux, _, _ = attached()
    mux.receive(data(1, READY_SIZE, body))
    with pytest.raises(ProtocolError):
        mux.next_control()


def test_control_window_closes_when_nobody_takes_messages() -> None:
    """Messages nobody takes do not open the window again: a flood stops at one window."""
    mux, _, _ = attached()
    for at in range(READY_SIZE, WINDOW, 65536):
        size = min(65536, WINDOW - at)
        mux.receive(data(1, at, bytes(size)))
    assert not mux.data_to_send()
    with pytest.raises(ProtocolError):
        mux.receive(data(1, WINDOW, b"x"))


def test_single_bytes_do_not_cost_an_object_each() -> None:
    """A window full of one-byte frames that nobody reads takes about a window of memory."""
    mux, _, receiver = attached()
    for at in range(WINDOW):
        mux.receive(data(3, at, b"x"))
    assert sum(sys.getsizeof(chunk) for chunk in receiver._queue) < 2 * WINDOW
    taken = bytearray()
    while chunk := receiver.peek():
        taken += chunk
        mux.consumed(receiver, len(chunk))
    assert taken == b"x" * WINDOW


def test_writes_of_single_bytes_are_gathered() -> None:
    """Bytes written one by one before they can be sent leave in few frames."""
    mux, sender, _ = attached()
    for _ in range(10_000):
        assert mux.write(sender, b"x") == 1
    assert sum(map(len, mux.data_to_send())) < 10_100


def test_write_takes_no_more_than_the_credit() -> None:
    """Bytes beyond the agent's window are not taken, and are again after it consumed some."""
    mux, sender, _ = attached()
    assert mux.write(sender, bytes(1 << 20)) == WINDOW
    assert mux.write(sender, b"x") == 0
    mux.data_to_send()
    mux.receive(wire.window_frame(2, 65536, 65536 + WINDOW))
    assert sender.credit == 65536


def test_nothing_is_sent_on_an_input_before_its_first_window() -> None:
    """Neither bytes nor EOF go to a stream the agent may not know yet."""
    mux, _, _ = attached()
    late = mux.open_sender()
    assert mux.write(late, b"x") == 0
    mux.end(late)
    assert not mux.data_to_send()
    mux.receive(wire.window_frame(late.stream, 0, WINDOW))
    assert b"".join(mux.data_to_send()) == wire.eof_frame(late.stream, 0)


@pytest.mark.parametrize("again", [False, True])
def test_a_window_is_said_before_any_word(again: bool) -> None:
    """After each attach the agent hears a frame without content first; then no word is taken for a new beginning."""
    mux = Mux()
    mux.send_control(b"\x29\0\0\0\5" + wire.preface(wire.FIRST_KEY))
    peer = AgentPeer()
    for _ in range(1 + again):
        mux.attach()
        peer.receive(b"".join(mux.data_to_send()))
        mux.receive(peer.data_to_send())
    said = b"".join(mux.data_to_send())
    first, _, stream, length = wire.read_header(said, 0)
    then, _, _, _ = wire.read_header(said, wire.FRAME_OVERHEAD + length)
    assert (first, stream, then) == (wire.WINDOW, 1, wire.DATA)


def test_stop_waits_until_the_agent_knows_the_stream() -> None:
    """A reader that leaves before the program started is told about once it has."""
    mux, _, receiver = attached()
    mux.stop(receiver)
    assert not mux.data_to_send()
    mux.know(receiver)
    assert b"".join(mux.data_to_send()) == wire.stop_frame(3)


def test_after_stop_bytes_are_counted_and_thrown_away() -> None:
    """After STOP the window still opens, nothing is kept, and EOF with ABORTED ends the stream."""
    mux, _, receiver = attached()
    mux.know(receiver)
    mux.stop(receiver)
    mux.data_to_send()
    mux.receive(data(3, 0, bytes(65536)))
    assert receiver.peek() == b""
    assert b"".join(mux.data_to_send()) == wire.window_frame(3, 65536, 65536 + WINDOW)
    mux.receive(wire.eof_frame(3, 70000, aborted=True))
    assert receiver.finished
    assert b"".join(mux.data_to_send()) == wire.window_frame(3, 70000, 70000 + WINDOW, fin=True)


def test_stop_from_the_agent_is_answered_with_an_aborted_end() -> None:
    """STOP drops what waits, ends the stream with ABORTED, and FIN forgets it."""
    mux, sender, _ = attached()
    mux.write(sender, b"abc")
    mux.data_to_send()
    mux.write(sender, b"def")
    mux.receive(wire.stop_frame(2))
    assert mux.take_touched() == [sender]
    assert sender.credit == 0
    assert b"".join(mux.data_to_send()) == wire.eof_frame(2, 6, aborted=True)
    mux.receive(wire.window_frame(2, 6, 6 + WINDOW, fin=True))
    assert sender.finished


def test_forgotten_streams_are_unknown() -> None:
    """After FAILED a frame for the job's streams is refused like any other unknown stream."""
    mux, sender, receiver = attached()
    mux.forget(sender, receiver, None)
    with pytest.raises(ProtocolError):
        mux.receive(data(3, 0, b"x"))


def test_garbage_before_the_answer_is_skipped() -> None:
    """What an earlier byte stream left, however long, is thrown away until the nonce appears."""
    mux = Mux()
    mux.attach(b"ab" * 16)
    peer = AgentPeer()
    peer.receive(b"".join(mux.data_to_send()))
    for _ in range(100):
        mux.receive(frame(3, 3, bytes(60000)) + PREFACE + b"0" * 32)
    assert len(mux._partial) < 100
    answer = peer.data_to_send()
    for byte in answer:
        assert mux.state in (ATTACHING, ATTACHED)
        mux.receive(bytes((byte,)))
    assert mux.state == ATTACHED


def answer_with(payload: bytes, *, session: bytes | None = None) -> None:
    """Let an agent answer the greeting with this ATTACHED payload."""
    mux = Mux()
    mux.session = session
    mux.attach(b"ab" * 16)
    mux.receive(wire.preface(b"ab" * 16) + frame(wire.ATTACHED, 0, payload))


ZERO = wire.TableRow(0, 0, 0, WINDOW)
KEY = b"cd" * 16


def test_another_version_is_named() -> None:
    """An agent of another version is refused with both versions in the message, whatever follows the number."""
    with pytest.raises(ProtocolError, match=r"version 9 .* version 1"):
        answer_with(b"\x09\x00" + KEY + b"\0\0\0\0\0")


@pytest.mark.parametrize(
    "answer",
    [
        wire.Attached(1, KEY, True, ()),
        wire.Attached(1, KEY, True, (ZERO, ZERO)),
        wire.Attached(1, KEY, True, (ZERO, wire.TableRow(2, 0, 0, 0))),
        wire.Attached(1, KEY, True, (ZERO, wire.TableRow(1, 0, 0, WINDOW))),
        wire.Attached(1, KEY, True, (wire.TableRow(0, 1, 0, WINDOW),)),
        wire.Attached(1, KEY, True, (wire.TableRow(0, 0, 0, WINDOW + 1),)),
        wire.Attached(1, b"XY" * 16, True, (ZERO,)),
    ],
    ids=["no control", "twice", "unknown", "wrong direction", "never sent", "limit", "key"],
)
def test_refuses_attached(answer: wire.Attached) -> None:
    """An answer to ATTACH that cannot be is refused."""
    with pytest.raises(ProtocolError):
        answer_with(wire.encode_attached(answer))


@pytest.mark.parametrize("fresh, session", [(True, KEY), (False, b"ef" * 16), (False, None)])
def test_another_agent_is_refused(fresh: bool, session: bytes | None) -> None:
    """An agent with another key, one that just began, or one that says it knows us already is not the one we knew."""
    with pytest.raises(ProtocolError, match="another agent"):
        answer_with(wire.encode_attached(wire.Attached(1, KEY, fresh, (ZERO,))), session=session)


FRAMES = st.lists(
    st.one_of(
        st.builds(
            frame,
            st.integers(0, 8),
            st.integers(0, 8),
            st.binary(max_size=40),
            st.integers(0, 2),
        ),
        st.builds(
            data, st.sampled_from([1, 3]), st.sampled_from([0, 23, 26]), st.binary(min_size=1, max_size=9)
        ),
        st.builds(
            wire.window_frame,
            st.sampled_from([0, 2]),
            st.integers(0, 3),
            st.sampled_from([WINDOW, WINDOW + 3]),
            fin=st.booleans(),
        ),
        st.builds(wire.eof_frame, st.just(3), st.integers(0, 9), aborted=st.booleans()),
        st.just(wire.stop_frame(2)),
        st.binary(max_size=30),
    ),
    max_size=12,
)


@settings(max_examples=500, deadline=None)
@given(FRAMES, st.integers(1, 50))
def test_any_bytes_are_taken_or_refused(frames: list[bytes], step: int) -> None:
    """Whatever an agent sends is either taken or a protocol error, and nothing else is raised."""
    mux, sender, receiver = attached()
    mux.write(sender, b"abc")
    mux.data_to_send()
    sent = b"".join(frames)
    try:
        for start in range(0, len(sent), step):
            mux.receive(sent[start : start + step])
            while mux.next_control():
                pass
            mux.take_touched()
            if chunk := receiver.peek():
                mux.consumed(receiver, len(chunk))
            mux.data_to_send()
    except ProtocolError:
        return
    assert len(mux._partial) < 70_000


def flood_before_the_answer() -> None:
    """Take 17 MiB of bytes that are no answer to the greeting."""
    mux = Mux()
    mux.attach()
    for _ in range(17):
        mux.receive(bytes(1 << 20))


def test_bytes_before_the_answer_are_bounded() -> None:
    """A guest that writes and writes instead of answering is refused, not waited for."""
    with pytest.raises(ProtocolError, match="16 MiB came before the answer"):
        flood_before_the_answer()


def test_bytes_before_the_answer_without_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: without the bound the flood is taken as long as it lasts."""
    monkeypatch.setattr("cloche.guest.mux._MOST_JUNK", 1 << 40)
    flood_before_the_answer()
