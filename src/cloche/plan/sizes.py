"""Reading sizes of disks and mounts (layer 2, pure)."""

from __future__ import annotations

from cloche.errors import UsageError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
#: No file of a Linux host is larger than this.
_LARGEST = 1 << 62


def parse_size_bytes(word: str, where: str) -> int:
    """Read ``10G``, ``512M``, ``64K``, ``1T`` (also ``GiB``), or a number of bytes; ``where`` is for the message.

    Raises:
        UsageError: It is no size, or none at all.
    """
    number = word.rstrip("bBiIkKmMgGtT")
    unit = word[len(number) :].upper().removesuffix("B").removesuffix("I")
    digits = number.isascii() and number.isdigit() and len(number) < 20
    if not digits or unit not in _UNITS or not 0 < int(number) * _UNITS[unit] <= _LARGEST:
        raise UsageError(f"{where}: {word!r} is not a size", hint="Write for example 512M or 10G.")
    return int(number) * _UNITS[unit]
