"""Frames of the channel: bytes in, frames out (layer 3).

``protocol/README.md`` section 2. No state and no I/O: ``cloche.guest.mux`` holds the state of a connection.
"""

from __future__ import annotations

import struct

from cloche.errors import ProtocolError
from cloche.host.codec import Reader, Writer
from cloche.record import Record

VERSION = 1

ATTACH = 1
ATTACHED = 2
DATA = 3
WINDOW = 4
EOF = 5
STOP = 6

#: Flag of WINDOW: the final offset was consumed, the stream is forgotten.
FIN = 1
#: Flag of EOF: the writer gave up.
ABORTED = 1

WINDOW_SIZE = 262144
MAX_DATA = 65536
MAX_ATTACH = 1 << 20
HEADER_SIZE = 12
#: Header and trailer: the smallest whole frame.
FRAME_OVERHEAD = HEADER_SIZE + 1
TRAILER = b"\n"
PREFACE_MAGIC = b"\xc1CLOCHE\x01"
KEY_SIZE = 32
PREFACE_SIZE = len(PREFACE_MAGIC) + KEY_SIZE
#: The key of the first attach.
FIRST_KEY = b"0" * KEY_SIZE

_HEADER = struct.Struct("<BBHII")
_DATA_HEAD = struct.Struct("<BBHIIQ")
_EOF_FRAME = struct.Struct("<BBHIIQc")
_WINDOW_FRAME = struct.Struct("<BBHIIQQc")
_STOP_FRAME = struct.Struct("<BBHIIc")

#: type -> (least length, greatest length, flags allowed)
_RULES = {
    ATTACH: (0, MAX_ATTACH, 0),
    ATTACHED: (0, MAX_ATTACH, 0),
    DATA: (9, MAX_DATA + 8, 0),
    WINDOW: (16, 16, FIN),
    EOF: (8, 8, ABORTED),
    STOP: (0, 0, 0),
}
_HEX = frozenset(b"0123456789abcdef")


class TableRow(Record):
    """What one receiver tells at an attach: offsets in bytes from the start of the stream."""

    stream: int
    received: int
    consumed: int
    limit: int


class Attach(Record):
    """Payload of ATTACH."""

    version: int
    nonce: bytes
    table: tuple[TableRow, ...]


class Attached(Record):
    """Payload of ATTACHED."""

    version: int
    session: bytes
    fresh: bool
    table: tuple[TableRow, ...]


def read_header(buffer: bytes | bytearray | memoryview, position: int) -> tuple[int, int, int, int]:
    """Decode and check the twelve bytes at ``position``; the caller has made sure they are there.

    Returns type, flags, stream and the payload's length in bytes; a plain tuple, because this runs for every frame.

    Raises ProtocolError for anything malformed, so that a bad length is refused before its payload is waited for.
    """
    kind, flags, zero, stream, length = _HEADER.unpack_from(buffer, position)
    rule = _RULES.get(kind)
    if rule is None:
        raise ProtocolError(f"a frame has the unknown type {kind}")
    least, most, allowed = rule
    if flags & ~allowed or zero:
        raise ProtocolError(f"a frame of type {kind} has unknown flags")
    if not least <= length <= most:
        raise ProtocolError(f"a frame of type {kind} has the wrong length {length}")
    return kind, flags, stream, length


def preface(key: bytes) -> bytes:
    """What a new byte stream starts with: the session key (to the agent) or the nonce (to the host)."""
    if len(key) != KEY_SIZE or not _HEX.issuperset(key):
        raise ProtocolError("a key is not 32 lower-case hex digits")
    return PREFACE_MAGIC + key


def frame(kind: int, stream: int, payload: bytes = b"", flags: int = 0) -> bytes:
    """One whole frame. For DATA on the fast path use ``data_header`` and send the pieces."""
    return _HEADER.pack(kind, flags, 0, stream, len(payload)) + payload + TRAILER


def data_header(stream: int, offset: int, size: int) -> bytes:
    """What comes before ``size`` bytes of DATA; ``TRAILER`` comes after them."""
    return _DATA_HEAD.pack(DATA, 0, 0, stream, size + 8, offset)


def eof_frame(stream: int, final: int, *, aborted: bool = False) -> bytes:
    """EOF: the stream ends at offset ``final``."""
    return _EOF_FRAME.pack(EOF, ABORTED if aborted else 0, 0, stream, 8, final, TRAILER)


def window_frame(stream: int, consumed: int, limit: int, *, fin: bool = False) -> bytes:
    """WINDOW: ``consumed`` bytes are done with, offsets below ``limit`` may be sent."""
    return _WINDOW_FRAME.pack(WINDOW, FIN if fin else 0, 0, stream, 16, consumed, limit, TRAILER)


def stop_frame(stream: int) -> bytes:
    """STOP: the reader is gone."""
    return _STOP_FRAME.pack(STOP, 0, 0, stream, 0, TRAILER)


def _put_row(out: Writer, row: TableRow) -> None:
    out.u32(row.stream)
    out.u64(row.received)
    out.u64(row.consumed)
    out.u64(row.limit)


def _get_row(data: Reader) -> TableRow:
    return TableRow(data.u32(), data.u64(), data.u64(), data.u64())


def _get_table(data: Reader) -> tuple[TableRow, ...]:
    table = tuple(data.many(28, _get_row))
    data.end()
    return table


def encode_attach(message: Attach) -> bytes:
    """Payload of ATTACH."""
    out = Writer()
    out.u16(message.version)
    out.raw(message.nonce)
    out.many(message.table, _put_row)
    return out.finish()


def decode_attach(payload: bytes | memoryview) -> Attach:
    """Raises ProtocolError when the payload is malformed."""
    data = Reader(payload)
    version, nonce = data.u16(), data.take(KEY_SIZE)
    if not _HEX.issuperset(nonce):
        raise ProtocolError("an ATTACH frame is malformed")
    return Attach(version, nonce, _get_table(data))


def encode_attached(message: Attached) -> bytes:
    """Payload of ATTACHED."""
    out = Writer()
    out.u16(message.version)
    out.raw(message.session)
    out.u8(1 if message.fresh else 0)
    out.many(message.table, _put_row)
    return out.finish()


def decode_attached(payload: bytes | memoryview) -> Attached:
    """Raises ProtocolError when the payload is malformed. Of another version only the number is read."""
    data = Reader(payload)
    version = data.u16()
    if version != VERSION:
        return Attached(version, FIRST_KEY, False, ())
    session = data.take(KEY_SIZE)
    fresh = data.u8()
    if fresh > 1 or not _HEX.issuperset(session):
        raise ProtocolError("an ATTACHED frame is malformed")
    return Attached(version, session, fresh == 1, _get_table(data))
