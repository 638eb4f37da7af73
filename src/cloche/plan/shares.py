"""Reading ``--share`` and ``--include`` (layer 2, pure; the host's view of the paths comes from ``host.paths``)."""

from __future__ import annotations

from cloche.errors import ShareError, UsageError
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from cloche.model.request import Include, Share

#: Trees without which nothing runs in the guest: a share on top of one would take the ground away. Below is allowed.
_PROGRAMS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_GROUND = ("/etc", "/usr", *_PROGRAMS, *(f"/usr{tree}" for tree in _PROGRAMS))
#: Trees that the guest's kernel and agent fill when everything else is in place: what is put there would be hidden.
_TAKEN = ("/dev", "/proc", "/sys", "/run", "/var/run", "/var/lock")
_MAX_SHARES = 64
_ELSEWHERE = "Choose another place, for a share with :at=PATH."
_ONE_ELSEWHERE = "Give one of them another place with :at=PATH."


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


def check_places(shares: tuple[Share, ...], includes: tuple[Include, ...] = ()) -> None:
    """Refuse shares and copies that cannot be where they are asked to be.

    A share may lie in another one only where the host has it there too: its mount point must exist, and none is made
    in somebody's directory.

    Raises:
        ShareError: A reserved place, the same place twice, one in the other, or too many.
    """
    if len(shares) + len(includes) > _MAX_SHARES:
        raise ShareError(
            f"{len(shares) + len(includes)} shares and includes are more than a domain's {_MAX_SHARES}",
            hint="Share a directory that holds several of them.",
        )
    seen: set[str] = set()
    for share in shares:
        _check_place("a share", share.target)
        if share.target in _GROUND:
            raise ShareError(f"a share cannot be at {share.target}: that is the guest's own", hint=_ELSEWHERE)
        if share.target in seen:
            raise ShareError(f"two shares are at {share.target}", hint=_ONE_ELSEWHERE)
        seen.add(share.target)
        for outer in shares:
            if outer.target == share.target or not contains(outer.target, share.target):
                continue
            if share.source != outer.source.rstrip("/") + share.target[len(outer.target) :]:
                raise ShareError(
                    f"the share at {share.target} would lie in the one at {outer.target}", hint=_ONE_ELSEWHERE
                )
    for include in includes:
        _check_place("a copy", include.target)
        if include.target in seen:
            raise ShareError(
                f"two things are to be at {include.target}", hint="Include one of them at another place."
            )
        seen.add(include.target)
        for share in shares:
            if contains(share.target, include.target):
                raise ShareError(
                    f"a copy cannot be at {include.target}: it would be made in the shared directory {share.source}",
                    hint="Put the file there yourself, or include it at another place.",
                )


def _check_place(what: str, target: str) -> None:
    if target == "/":
        raise ShareError(f"{what} cannot be at /: nothing of the guest would be left", hint=_ELSEWHERE)
    taken = next((tree for tree in _TAKEN if contains(tree, target)), None)
    if taken is not None:
        raise ShareError(f"{what} cannot be at {target}: the guest fills {taken} itself", hint=_ELSEWHERE)


def contains(tree: str, path: str) -> bool:
    """Tell whether ``path`` is ``tree`` or lies in it; both are absolute and normal."""
    return path == tree or path.startswith(tree.rstrip("/") + "/")
