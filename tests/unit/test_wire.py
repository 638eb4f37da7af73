"""Primitives, frames, and the golden vectors of frames."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.errors import ProtocolError
from cloche.guest import wire
from cloche.host.codec import Reader, Writer
from cloche.host.text import escape_untrusted

ROWS = st.builds(wire.TableRow, st.integers(0, 2**32 - 1), *(st.integers(0, 2**64 - 1) for _ in range(3)))


def test_primitives_are_little_endian() -> None:
    """Integers are little-endian, bytes and lists carry a u32 count."""
    out = Writer()
    out.u8(1)
    out.u16(2)
    out.u32(3)
    out.u64(4)
    out.blob(b"ab")
    out.many([5, 6], Writer.u8)
    encoded = out.finish()
    assert encoded == bytes.fromhex("01 0200 03000000 0400000000000000 02000000 6162 02000000 0506")
    data = Reader(encoded)
    assert (data.u8(), data.u16(), data.u32(), data.u64(), data.blob()) == (1, 2, 3, 4, b"ab")
    assert data.many(1, Reader.u8) == [5, 6]
    data.end()


@pytest.mark.parametrize("size", range(26))
def test_primitives_check_every_length(size: int) -> None:
    """A message cut anywhere is refused."""
    encoded = bytes.fromhex("01 0200 03000000 0400000000000000 02000000 6162 01000000 05")[:size]
    data = Reader(encoded)
    with pytest.raises(ProtocolError):
        _ = (data.u8(), data.u16(), data.u32(), data.u64(), data.blob(), data.many(1, Reader.u8))


def test_forged_counts_are_refused_at_once() -> None:
    """A count that cannot fit makes nothing."""
    with pytest.raises(ProtocolError):
        Reader(b"\xff\xff\xff\xff" + bytes(100)).many(4, Reader.u32)


def test_trailing_bytes_are_refused() -> None:
    """A message must end where its last field ends."""
    data = Reader(b"\1\2")
    data.u8()
    with pytest.raises(ProtocolError):
        data.end()


@given(st.lists(ROWS, max_size=5))
def test_attach_round_trip(rows: list[wire.TableRow]) -> None:
    """ATTACH and ATTACHED decode to what was encoded."""
    attach = wire.Attach(1, b"ab" * 16, tuple(rows))
    attached = wire.Attached(1, b"cd" * 16, True, tuple(rows))
    assert wire.decode_attach(wire.encode_attach(attach)) == attach
    assert wire.decode_attached(wire.encode_attached(attached)) == attached


@given(st.integers(0, 2), st.text("0123456789abcdefA", max_size=34), st.binary(max_size=40))
def test_a_greeting_is_canonical_or_refused(version: int, key: str, rest: bytes) -> None:
    """Bytes that are no greeting raise ProtocolError and nothing else; those that are encode to themselves."""
    payload = version.to_bytes(2, "little") + key.encode() + rest
    try:
        assert wire.encode_attach(wire.decode_attach(payload)) == payload
    except ProtocolError:
        pass
    try:
        attached = wire.decode_attached(payload)
    except ProtocolError:
        return
    # Of another version only the number is read.
    assert attached.version != wire.VERSION or wire.encode_attached(attached) == payload


@given(st.binary(min_size=wire.HEADER_SIZE, max_size=wire.HEADER_SIZE), st.integers(0, 8))
def test_a_header_is_bounded_or_refused(noise: bytes, kind: int) -> None:
    """What is taken for the beginning of a frame promises no more than a frame may have."""
    try:
        found, _, _, length = wire.read_header(bytes([kind]) + noise[1:], 0)
    except ProtocolError:
        return
    assert found == kind
    assert 0 <= length <= wire.MAX_ATTACH


def test_fast_paths_equal_the_general_frame() -> None:
    """The packed frames are what ``frame`` would make."""
    assert wire.data_header(3, 7, 2) + b"ab\n" == wire.frame(wire.DATA, 3, (7).to_bytes(8, "little") + b"ab")
    assert wire.eof_frame(3, 7, aborted=True) == wire.frame(wire.EOF, 3, (7).to_bytes(8, "little"), 1)
    assert wire.stop_frame(3) == wire.frame(wire.STOP, 3)
    payload = (7).to_bytes(8, "little") + (9).to_bytes(8, "little")
    assert wire.window_frame(2, 7, 9, fin=True) == wire.frame(wire.WINDOW, 2, payload, 1)


@pytest.mark.parametrize("key", [b"0" * 31, b"0" * 33, b"A" * 32, b"\n" * 32])
def test_keys_are_hex_digits(key: bytes) -> None:
    """A key that could hold a trailer is refused."""
    with pytest.raises(ProtocolError):
        wire.preface(key)


@given(st.binary(), st.integers(0, 200))
def test_escaped_text_is_printable(data: bytes, limit: int) -> None:
    """Whatever a guest says becomes one printable line within the limit."""
    text = escape_untrusted(data, limit)
    assert text.isprintable()
    assert len(text) <= limit + 3


def test_escapes_are_visible() -> None:
    """Escape sequences, line ends, direction marks and broken UTF-8 are shown, plain text is left alone."""
    assert escape_untrusted("grün".encode()) == "grün"
    assert escape_untrusted(b"\x1b[2J\r\n\x9b\\") == "\\x1b[2J\\r\\n\\x9b\\\\"
    assert escape_untrusted("\u202e\u0085".encode()) == "\\u202e\\x85"
    assert escape_untrusted(b"x" * 50, 10) == "x" * 10 + "..."
