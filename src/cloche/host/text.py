"""Makes text from a guest safe to show (layer 3). Pure; used wherever a guest's words reach a message or a terminal."""

from __future__ import annotations

import os

#: The largest number Linux gives an error (include/linux/err.h).
_MAX_ERRNO = 4095
_NAMED = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, kept by surrogateescape
        return f"\\x{code - 0xDC00:02x}"
    if char in _NAMED:
        return _NAMED[char]
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def escape_untrusted(data: bytes, limit: int = 1000) -> str:
    """``data`` as one line of printable text, at most ``limit`` characters (and "..." when it was cut).

    Control characters, escape sequences, line ends, direction marks, bytes that are not UTF-8 and backslashes become
    visible escapes, so nothing in ``data`` can move a cursor, forge a line or hide text. Never raises.
    """
    # One character takes at most four bytes: no more than that is looked at, however long the input.
    text = data[: 4 * limit + 4].decode("utf-8", "surrogateescape")
    shown: list[str] = []
    room = limit
    for char in text:
        piece = char if char.isprintable() and char != "\\" else _escape(char)
        if len(piece) > room:
            return "".join(shown) + "..."
        shown.append(piece)
        room -= len(piece)
    return "".join(shown)


def describe_errno(code: int) -> str:
    """What an error number of a guest means, whatever number it is."""
    return os.strerror(code) if 0 < code <= _MAX_ERRNO else f"error {code}"


def format_size(number: int) -> str:
    """Return a number of bytes in the unit that suits it."""
    value = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
