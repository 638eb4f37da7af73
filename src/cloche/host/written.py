"""Records as JSON, and back (layer 3a): for files that outlive the process which has written them.

What is read is compared with the records' annotations at every place: what fits nowhere is no record. Bytes are written
as text with a character for each.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from typing import TypeVar

    Kind = TypeVar("Kind")


def to_plain(value: Any) -> Any:
    """Return what JSON can hold of a record, or of what may be in one."""
    if hasattr(value, "_fields"):
        return {field: to_plain(part) for field, part in zip(value._fields, value, strict=True)}
    if isinstance(value, tuple):
        return [to_plain(part) for part in value]
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return value


def from_plain(kind: type[Kind], plain: Any) -> Kind:
    """Return the record of this kind.

    Raises:
        ValueError: It is none.
    """
    record: Kind = _read(kind, plain)
    return record


def _read(kind: Any, plain: Any) -> Any:
    if hasattr(kind, "_fields"):
        return _read_record(kind, plain)
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if plain is None and type(None) in parts:
            return None
        return _read(next(part for part in parts if part is not type(None)), plain)
    if origin is tuple:
        if not isinstance(plain, list):
            raise ValueError(f"{plain!r} is no list")
        if len(parts) == 2 and parts[1] is Ellipsis:
            return tuple(_read(parts[0], one) for one in plain)
        return tuple(_read(part, one) for part, one in zip(parts, plain, strict=True))
    if kind is bytes and isinstance(plain, str):
        return plain.encode("latin-1")
    if kind is float and type(plain) is int:
        return float(plain)
    if type(plain) is not kind:
        raise ValueError(f"{plain!r} is no {getattr(kind, '__name__', kind)}")
    return plain


def _read_record(kind: Any, plain: Any) -> Any:
    if not isinstance(plain, dict) or plain.keys() != set(kind._fields):
        raise ValueError(f"no {kind.__name__}")
    hints = get_type_hints(kind)
    return kind(**{field: _read(hints[field], plain[field]) for field in kind._fields})
