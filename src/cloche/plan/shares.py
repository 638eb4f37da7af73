"""Reading ``--share`` and ``--include`` (layer 2, pure; the host's view of the paths comes from ``host.paths``)."""

from __future__ import annotations

from cloche.errors import ShareError, UsageError
from cloche.record import Record

#: Places in the guest that are cloche's to fill; a share on top of one would take the ground away under the guest.
_RESERVED = (
    "/",
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/etc",
    "/dev",
    "/proc",
    "/sys",
    "/run",
)
_MAX_SHARES = 64


class ShareWord(Record):
    """``DIR[:ro|:rw][:at=PATH]`` taken apart; ``target`` None means "where it is on the host"."""

    source: str
    writable: bool
    target: str | None


def parse_share(word: str) -> ShareWord:
    """Read the argument of ``--share``; read-only unless ``:rw`` is said.

    The options are taken from the right, so that a directory name may hold colons.

    Raises:
        UsageError: An empty directory or target.
    """
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
                raise UsageError(f"the guest path {path!r} leaves the root")
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def check_targets(targets: tuple[str, ...]) -> None:
    """Refuse shares that cannot be where they are asked to be.

    Raises:
        ShareError: A reserved place, the same place twice, or too many shares.
    """
    if len(targets) > _MAX_SHARES:
        raise ShareError(f"{len(targets)} shares are more than the {_MAX_SHARES} a domain can have")
    seen: set[str] = set()
    for target in targets:
        if target == "/":
            raise ShareError(
                "the whole root directory cannot be shared: nothing would be hidden any more",
                hint="Share the directories the program needs, for example --share ~/project:rw.",
            )
        if target in _RESERVED:
            raise ShareError(
                f"a share cannot be at {target}: that is the guest's own",
                hint="Choose another place with :at=PATH.",
            )
        if target in seen:
            raise ShareError(
                f"two shares are at {target}", hint="Give one of them another place with :at=PATH."
            )
        seen.add(target)
