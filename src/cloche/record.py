"""Typed named tuples that cost nothing to define (layer 0, standard library only).

``typing.NamedTuple`` is what type checkers see here. At run time, importing ``typing`` and compiling a constructor for
every class would take a third of the time cloche has before the first process of a machine starts; this class makes the
same tuples from the same annotations without either. What it leaves out (``_make``, ``_asdict`` order tricks,
defaults by introspection) nobody uses on that path.
"""

from __future__ import annotations

__all__ = ["TYPE_CHECKING", "Protocol", "Record"]

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import NamedTuple as Record
    from typing import Protocol
else:
    from _collections import _tuplegetter

    class Protocol:
        """At run time a protocol is only a name."""

    class _RecordType(type):
        def __new__(mcs, name, bases, namespace):
            if not bases:
                return super().__new__(mcs, name, (tuple,), namespace)
            fields = tuple(namespace.get("__annotations__", ()))
            defaults = {field: namespace.pop(field) for field in fields if field in namespace}
            for index, field in enumerate(fields):
                namespace[field] = _tuplegetter(index, "")
            namespace.update(__slots__=(), _fields=fields, _field_defaults=defaults, __match_args__=fields)
            return type.__new__(mcs, name, bases, namespace)

    class Record(metaclass=_RecordType):
        """The base of every record; see the module's docstring."""

        __slots__ = ()
        _fields = ()
        _field_defaults = {}  # noqa: RUF012 - replaced, never changed

        def __new__(cls, *values, **named):
            """Make a record from values in field order, by name, or both."""
            fields = cls._fields
            if len(values) != len(fields) or named:
                values = _complete(cls, values, named)
            return tuple.__new__(cls, values)

        def __getnewargs__(self):
            return tuple(self)

        def __repr__(self):
            words = ", ".join(f"{field}={value!r}" for field, value in zip(self._fields, self, strict=True))
            return f"{type(self).__name__}({words})"

        def _replace(self, **named):
            values = [named.pop(field, value) for field, value in zip(self._fields, self, strict=True)]
            if named:
                raise ValueError(f"{type(self).__name__} has no field {', '.join(named)}")
            return tuple.__new__(type(self), values)

        def _asdict(self):
            return dict(zip(self._fields, self, strict=True))

    def _complete(cls, values, named):
        fields, defaults = cls._fields, cls._field_defaults
        if len(values) > len(fields):
            raise TypeError(f"{cls.__name__} takes {len(fields)} values, {len(values)} were given")
        rest = []
        for field in fields[len(values) :]:
            if field in named:
                rest.append(named.pop(field))
            elif field in defaults:
                rest.append(defaults[field])
            else:
                raise TypeError(f"{cls.__name__} misses {field}")
        if named:
            raise TypeError(f"{cls.__name__} got the unexpected or repeated {', '.join(named)}")
        return (*values, *rest)
