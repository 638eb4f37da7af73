"""Reading ``--net`` (layer 2, pure; the host's view comes from ``host.networks``)."""

from __future__ import annotations

from cloche.errors import UsageError

_FORM = "Write none, socket:PATH or socket:PATH,mac=02:00:00:00:00:01."
_DIGITS = frozenset("0123456789abcdef")


def parse_network(word: str) -> tuple[str, str | None] | None:
    """Read ``none`` or ``socket:PATH[,mac=MAC]``; returns path and address, None for no network.

    Raises:
        UsageError: It is malformed.
    """
    if "\0" in word:
        raise UsageError(f"--net {word!r} holds a NUL byte, which no name can")
    if word == "none":
        return None
    kind, _, path = word.partition(":")
    if kind != "socket":
        raise UsageError(f"--net {word!r}: there is no network {kind!r}", hint=_FORM)
    mac = None
    head, separator, tail = path.rpartition(",")
    if separator and tail.startswith("mac="):
        path, mac = head, tail[4:].lower()
        if not is_card_address(mac):
            raise UsageError(
                f"--net {word!r}: {tail[4:]!r} cannot be the address of a network card",
                hint="It has six numbers of two hexadecimal digits, the first one even: 02:00:00:00:00:01.",
            )
    if not path:
        raise UsageError(f"--net {word!r} names no socket", hint=_FORM)
    return path, mac


def is_card_address(text: str) -> bool:
    """Whether this is the address of one card: six numbers, not all zero and no group's."""
    parts = text.split(":")
    if len(parts) != 6 or not all(len(part) == 2 and set(part) <= _DIGITS for part in parts):
        return False
    return int(parts[0], 16) % 2 == 0 and text != "00:00:00:00:00:00"
