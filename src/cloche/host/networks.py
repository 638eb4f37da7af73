"""What ``--net`` names on this host (layer 3a)."""

from __future__ import annotations

import os
import stat

from cloche.errors import NetworkError, UsageError
from cloche.model.request import Network, NetworkKind
from cloche.plan.networks import parse_network

#: Set in addresses that no maker of cards has given out.
_LOCAL = 2


def resolve_network(word: str) -> Network | None:
    """Turn the argument of ``--net`` into a network; a card without an address gets a random one.

    Raises:
        UsageError: The word is malformed.
        NetworkError: There is no such socket.
    """
    parsed = parse_network(word)
    if parsed is None:
        return None
    kind, path, mac = parsed
    if kind == NetworkKind.USER:
        return Network("", mac or _random_address(), kind=kind)
    try:
        real = os.path.realpath(os.path.expanduser(path), strict=True)
        mode = os.stat(real).st_mode
    except OSError as error:
        raise NetworkError(
            f"cannot connect the guest to {path}: {error.strerror}",
            hint=f"Start what is to listen there first, for instance `passt --socket {path}`.",
        ) from None
    if not stat.S_ISSOCK(mode):
        raise NetworkError(
            f"cannot connect the guest to {path}: it is no socket",
            hint="Name a Unix socket where somebody listens who speaks frames, as passt does.",
        )
    return Network(real, mac or _random_address())


def resolve_door(word: str) -> str:
    """Turn the argument of ``--vsock`` into the path of a socket that is to be made.

    Raises:
        UsageError: It names none.
        NetworkError: There is no such directory.
    """
    head, name = os.path.split(os.path.expanduser(word))
    if not name or name in (".", "..") or "\0" in word:
        raise UsageError(f"--vsock {word!r} names no socket", hint="Name a path where one can be made.")
    try:
        directory = os.path.realpath(head or ".", strict=True)
    except OSError as error:
        raise NetworkError(
            f"cannot listen at {word}: {error.strerror}", hint="Make its directory first, one of your own."
        ) from None
    return os.path.join(directory, name)


def _random_address() -> str:
    first, *rest = os.urandom(6)
    return ":".join(f"{byte:02x}" for byte in (first & 0xFC | _LOCAL, *rest))
