"""What the warden reports, when it is not the warden that reports it."""

from __future__ import annotations

import struct

from hypothesis import example, given
from hypothesis import strategies as st

from cloche.errors import ProtocolError
from cloche.host.warden import Exited, Failed, Ready, Spawned, _decode

U32 = st.integers(0, 2**32 - 1)
FDS = st.lists(st.just(7), max_size=2)
#: Whole events, and what is left of them or stands behind them.
EVENTS = st.one_of(
    st.just(b"\x41"),
    st.builds(struct.Struct("<BII").pack, st.just(66), U32, U32),
    st.builds(
        lambda head, text: head + struct.pack("<I", len(text)) + text,
        st.builds(struct.Struct("<BII").pack, st.just(67), U32, U32),
        st.binary(max_size=20),
    ),
    st.builds(struct.Struct("<BIBI").pack, st.just(68), U32, st.integers(0, 3), U32),
)
PACKETS = st.one_of(
    EVENTS,
    st.builds(lambda event, cut: event[:cut], EVENTS, st.integers(0, 20)),
    st.builds(lambda event, more: event + more, EVENTS, st.binary(max_size=4)),
    st.binary(max_size=40),
)


@given(PACKETS, FDS)
@example(bytes.fromhex("43000000000000008000000000"), [])  # an error number that no C integer holds
def test_any_packet_is_one_event_or_refused(packet: bytes, fds: list[int]) -> None:
    """Bytes that are not an event raise ProtocolError and nothing else; those that are say just that."""
    try:
        event = _decode(packet, fds, 0)
    except ProtocolError:
        return
    if isinstance(event, Ready):
        assert (packet, fds) == (b"\x41", [])
    elif isinstance(event, Spawned):
        assert struct.pack("<BII", 66, event.id, event.pid) == packet
        assert fds == [event.pidfd]
    elif isinstance(event, Failed):
        assert packet[:9] == struct.pack("<BII", 67, event.id, event.errno)
        assert fds == []
        # A number of an error that there is not has words, too.
        assert event.reason()
    else:
        assert isinstance(event, Exited)
        how, value = (1, event.signal) if event.status < 0 else (0, event.status)
        assert struct.pack("<BIBI", 68, event.id, how, value) == packet
        assert fds == []
