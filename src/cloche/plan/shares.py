"""Reading ``--share`` and ``--include`` (layer 2, pure; the host's view of the paths comes from ``host.paths``)."""

from __future__ import annotations

from cloche.errors import UsageError
from cloche.record import Record


class ShareWord(Record):
    """``DIR[:ro|:rw][:at=PATH]`` taken apart; ``target`` None means "where it is on the host"."""

    source: str
    writable: bool
    target: str | None


def parse_share(word: str) -> ShareWord:
    """Read the argument of ``--share``; read-only unless ``:rw`` is said.

    The options are taken from the right, so that a directory name may hold colons.

    Raises:
        UsageError: An empty directory or target, or a NUL byte.
    """
    if "\0" in word:
        raise UsageError(f"--share {word!r} holds a NUL byte, which no name can")
    source, writable, target = word, None, None
    while True:
        head, separator, tail = source.rpartition(":")
        if separator and tail in ("ro", "rw") and writable is None:
            source, writable = head, tail == "rw"
        elif separator and tail.startswith("at=") and target is None:
            source, target = head, tail[3:]
        else:
            break
    if not source or target == "":
        raise UsageError(f"--share {word!r} names no directory", hint="Write DIR, DIR:rw or DIR:ro:at=PATH.")
    return ShareWord(source, bool(writable), target)


def parse_include(word: str) -> tuple[str, str]:
    """Read ``GUEST=HOST`` of ``--include``; returns (guest path, host path).

    Raises:
        UsageError: No ``=``, an empty side, or a guest path that is not absolute.
    """
    if "\0" in word:
        raise UsageError(f"--include {word!r} holds a NUL byte, which no name can")
    guest, separator, host = word.partition("=")
    if not separator or not host or not guest.startswith("/"):
        raise UsageError(
            f"--include {word!r} is not of the form GUEST=HOST",
            hint="For example --include /etc/app.conf=./app.conf.",
        )
    return normalize_guest_path(guest), host


def normalize_guest_path(path: str) -> str:
    """Return an absolute guest path without ``.``, ``..`` and doubled slashes.

    Raises:
        UsageError: The path is relative, leaves the root, or holds a NUL byte.
    """
    if not path.startswith("/"):
        raise UsageError(f"the guest path {path!r} is not absolute", hint="Begin it with a slash.")
    if "\0" in path:
        raise UsageError(f"the guest path {path!r} holds a NUL byte")
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            if not parts:
                raise UsageError(
                    f"the guest path {path!r} leaves the root", hint="Write it without so many .."
                )
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def contains(tree: str, path: str) -> bool:
    """Tell whether ``path`` is ``tree`` or lies in it; both are absolute and normal."""
    return path == tree or path.startswith(tree.rstrip("/") + "/")
