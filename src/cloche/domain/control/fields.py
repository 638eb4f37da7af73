"""The fields of a message, put on the wire by the types that its record has (layer 5; ``protocol/control.md``).

A record that travels says nothing but its fields, in the order of the wire: ``str`` for text that may hold the bytes of
a file's name, ``bytes``, ``bool``, ``U8`` to ``U64``, a tuple of any length of one of these or of pairs of bytes, and
such tuples of records of its own module.
"""

from __future__ import annotations

import os
import stat
import sys

from cloche.errors import ProtocolError
from cloche.host.codec import Reader, Writer
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias, TypeVar

    M = TypeVar("M")
    U8: TypeAlias = int
    U16: TypeAlias = int
    U32: TypeAlias = int
    U64: TypeAlias = int
    #: A record of such fields.
    Message: TypeAlias = tuple[object, ...]
    #: How a value is put, how it is taken, and how many bytes it has at least.
    Code: TypeAlias = tuple[Callable[[Writer, Any], None], Callable[[Reader], Any], int]

#: What a program's words and variables may need, in bytes: more than the kernel lets an ``execve`` have.
_MOST_STORED = 8 << 20


class Nothing(Record):
    """An answer that says no more than that it was done."""


def write_fields(writer: Writer, message: Message) -> None:
    """Put a message's fields one after the other."""
    for (put, _, _), value in zip(_codes(type(message)), message, strict=True):
        put(writer, value)


def read_fields(kind: Callable[..., M], reader: Reader) -> M:
    """Take the fields of a message of this kind out again.

    Raises:
        ProtocolError: They are malformed.
    """
    return kind(*[take(reader) for _, take, _ in _codes(kind)])


def store(message: Message) -> int:
    """Return a descriptor of a file with a message that may be longer than a packet; the caller's to close."""
    writer = Writer()
    write_fields(writer, message)
    fd = os.memfd_create("words", os.MFD_CLOEXEC)
    data = writer.finish()
    while data:
        data = data[os.write(fd, data) :]
    return fd


def load(kind: Callable[..., M], fd: int) -> M:
    """Return the message in such a file.

    Raises:
        ProtocolError: There is none in it.
    """
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_STORED:
        raise ProtocolError("a program's words and variables are too long, or in no file")
    reader = Reader(os.pread(fd, status.st_size, 0))
    message = read_fields(kind, reader)
    reader.end()
    return message


def write_text(writer: Writer, text: str) -> None:
    """Put text that may hold the bytes of a file's name."""
    writer.blob(text.encode("utf-8", "surrogateescape"))


def read_text(reader: Reader) -> str:
    """Take such text."""
    return reader.blob().decode("utf-8", "surrogateescape")


def _read_flag(reader: Reader) -> bool:
    value = reader.u8()
    if value > 1:
        raise ProtocolError("a message holds a truth value that is none")
    return bool(value)


def _write_pair(writer: Writer, pair: tuple[bytes, bytes]) -> None:
    writer.blob(pair[0])
    writer.blob(pair[1])


_CODES: dict[str, Code] = {
    "str": (write_text, read_text, 4),
    "bytes": (Writer.blob, Reader.blob, 4),
    "bool": (Writer.u8, _read_flag, 1),
    "U8": (Writer.u8, Reader.u8, 1),
    "U16": (Writer.u16, Reader.u16, 2),
    "U32": (Writer.u32, Reader.u32, 4),
    "U64": (Writer.u64, Reader.u64, 8),
    "tuple[bytes, bytes]": (_write_pair, lambda reader: (reader.blob(), reader.blob()), 8),
}


def _codes(kind: Any) -> list[Code]:
    return [_code(word, kind.__module__) for word in getattr(kind, "__annotations__", {}).values()]


def _code(word: str, module: str) -> Code:
    """Return the code of a type as it is written in a record of ``module``."""
    if word in _CODES:
        return _CODES[word]
    if word.endswith(", ...]"):
        put, take, least = _code(word.removeprefix("tuple[").removesuffix(", ...]"), module)
        return (
            lambda writer, items: writer.many(items, put),
            lambda reader: tuple(reader.many(least, take)),
            4,
        )
    kind = getattr(sys.modules[module], word)
    return write_fields, lambda reader: read_fields(kind, reader), sum(code[2] for code in _codes(kind))
