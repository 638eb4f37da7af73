"""Wire primitives: little-endian integers, length-prefixed bytes and lists (layer 3).

``protocol/README.md`` section 1. Used by the agent's messages and by the warden's; knows nothing about either. A
reader checks every length against what is left before anything is allocated.
"""

from __future__ import annotations

import struct

from cloche.errors import ProtocolError
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeVar

    T = TypeVar("T")

_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class Reader:
    """Takes primitives out of ``data`` in order.

    Every method raises ProtocolError when the input ends before the value does. ``data`` is not copied; what ``blob``
    returns is.
    """

    __slots__ = ("_data", "_end", "_pos")

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = memoryview(data)
        self._pos = 0
        self._end = len(self._data)

    def remaining(self) -> int:
        """How many bytes are left."""
        return self._end - self._pos

    def _skip(self, count: int) -> int:
        start = self._pos
        if count > self._end - start:
            raise ProtocolError("a message ends too early")
        self._pos = start + count
        return start

    def u8(self) -> int:
        """One byte."""
        return self._data[self._skip(1)]

    def u16(self) -> int:
        """Two bytes."""
        return int(_U16.unpack_from(self._data, self._skip(2))[0])

    def u32(self) -> int:
        """Four bytes."""
        return int(_U32.unpack_from(self._data, self._skip(4))[0])

    def u64(self) -> int:
        """Eight bytes."""
        return int(_U64.unpack_from(self._data, self._skip(8))[0])

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes as they are."""
        start = self._skip(count)
        return bytes(self._data[start : start + count])

    def blob(self) -> bytes:
        """``bytes``: a u32 length, then that many bytes."""
        return self.take(self.u32())

    def many(self, min_size: int, item: Callable[[Reader], T]) -> list[T]:
        """``list<T>``: a u32 count, then that many ``T`` read by ``item``.

        ``min_size`` is the smallest encoding of one T in bytes: a forged count is refused before anything is made.
        """
        count = self.u32()
        if count * min_size > self.remaining():
            raise ProtocolError("a list is longer than its message")
        return [item(self) for _ in range(count)]

    def end(self) -> None:
        """Raise ProtocolError unless everything has been read."""
        if self._pos != self._end:
            raise ProtocolError("a message has trailing bytes")


class Writer:
    """Puts primitives one after another. Values that do not fit raise struct.error: that is the caller's bug."""

    __slots__ = ("_out",)

    def __init__(self) -> None:
        self._out = bytearray()

    def u8(self, value: int) -> None:
        """One byte."""
        self._out.append(value)

    def u16(self, value: int) -> None:
        """Two bytes."""
        self._out += _U16.pack(value)

    def u32(self, value: int) -> None:
        """Four bytes."""
        self._out += _U32.pack(value)

    def u64(self, value: int) -> None:
        """Eight bytes."""
        self._out += _U64.pack(value)

    def raw(self, value: bytes) -> None:
        """Bytes as they are, without a length."""
        self._out += value

    def blob(self, value: bytes) -> None:
        """``bytes``: a u32 length, then the bytes."""
        self._out += _U32.pack(len(value))
        self._out += value

    def many(self, items: Iterable[T], put: Callable[[Writer, T], None]) -> None:
        """``list<T>``: a u32 count, then each item written by ``put``."""
        start = len(self._out)
        self._out += b"\0\0\0\0"
        count = 0
        for item in items:
            put(self, item)
            count += 1
        _U32.pack_into(self._out, start, count)

    def finish(self) -> bytes:
        """Everything written so far."""
        return bytes(self._out)
