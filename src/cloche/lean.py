"""``enum``, ``signal`` and ``socket`` for the way to the first process of a machine (layer 0, standard library only).

Importing these three modules takes as long as starting Python does, most of it to dress up integers. Type checkers see
them here as they are; at run time, enumerations are made by the class below, and of signals and sockets there is what
the modules themselves are built on (``_signal``, ``_socket``): functions and constants with plain integers, sockets
without ``accept``, ``makefile`` and ``with``.
"""

from __future__ import annotations

__all__ = ["Enum", "IntEnum", "IntFlag", "signal", "socket"]

TYPE_CHECKING = False

if TYPE_CHECKING:
    import signal
    import socket
    from enum import Enum, IntEnum, IntFlag
else:
    import _signal as signal
    import _socket as socket

    class _EnumType(type):
        """Makes a member of every public attribute of a class."""

        def __new__(mcs, name, bases, namespace):
            values = {
                key: value for key, value in namespace.items() if not (key.startswith("_") or callable(value))
            }
            kept = {key: value for key, value in namespace.items() if key not in values}
            members = kept["_members"] = []
            made = type.__new__(mcs, name, bases, kept)
            for key, value in values.items():
                member = int.__new__(made, value) if issubclass(made, int) else object.__new__(made)
                member.name, member.value = key, value
                members.append(member)
                type.__setattr__(made, key, member)
            return made

        def __iter__(cls):
            return iter(cls._members)

        def __setattr__(cls, name, value):
            if name in {member.name for member in cls.__dict__.get("_members", ())}:
                raise AttributeError(f"{cls.__name__}.{name} cannot be changed")
            type.__setattr__(cls, name, value)

    class Enum(metaclass=_EnumType):
        """Names that stand for themselves."""

        def __repr__(self):
            return f"{type(self).__name__}.{self.name}"

    class IntEnum(int, metaclass=_EnumType):
        """Names that are integers."""

        def __new__(cls, value):
            """Return the member with that value."""
            for member in cls._members:
                if member == value:
                    return member
            raise ValueError(f"{value} is not a valid {cls.__name__}")

        def __repr__(self):
            return f"{type(self).__name__}.{self.name}"

    class IntFlag(IntEnum):
        """Names that are bits; bits together are a plain integer."""
