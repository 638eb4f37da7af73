"""The stage as a table (layer 2, pure): what a guest sees of the host, and why; ``cloche inspect --stage``."""

from __future__ import annotations

from cloche.plan.stage import EMPTY_DIRECTORIES, ETC_GROUPS, TREES
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cloche.model.facts import PathFact

#: What the guest has of its own (``stage.etc_files``).
_MADE = (
    ("/etc/passwd, group, shadow", "root, nobody and you, and nobody's password"),
    (
        "/etc/hosts, hostname, machine-id, resolv.conf, fstab, subuid, subgid",
        "names and numbers of the guest",
    ),
    ("the home", "what /etc/skel begins one with; yours is shared by --share"),
)
#: What is never shown, and what a program misses because of it.
_HIDDEN = (
    ("/home, /root", "what is yours; --share shows a part of it"),
    (
        "the rest of /var",
        "data, logs, databases of packages; fonts are looked through anew, TeX's formats are missing",
    ),
    ("the rest of /etc", "passwords, keys, networks, and what may hold some"),
    ("the rest of /run, /dev, /proc, /sys, /tmp", "the host's programs and devices; the guest has its own"),
    ("/boot, /mnt, /media, /srv, and all that is not named here", "nothing that programs need"),
    ("/snap, /var/lib/snapd", "a snap needs snapd, which only runs on the host"),
    ("/var/lib/flatpak", "a flatpak needs the host's session bus; programs of a distribution do not"),
)


class Row(Record):
    """A line of the table: ``how`` is ``shown``, ``link``, ``absent``, ``made``, ``empty`` or ``hidden``."""

    path: str
    how: str
    why: str


def describe_stage(paths: Mapping[str, PathFact]) -> tuple[Row, ...]:
    """Return what a guest sees of a host with these paths, and what it does not."""
    rows = [_row(path, why, paths) for path, why in TREES]
    rows += [_row(f"/etc/{name}", why, paths) for why, names in ETC_GROUPS for name in names]
    rows += [Row(path, "made", why) for path, why in _MADE]
    rows += [Row(path, "empty", "every system has one") for path, _ in EMPTY_DIRECTORIES]
    rows += [Row(path, "hidden", why) for path, why in _HIDDEN]
    return tuple(rows)


def _row(path: str, why: str, paths: Mapping[str, PathFact]) -> Row:
    fact = paths.get(path)
    if fact is None:
        return Row(path, "absent", why)
    if fact.kind == "link":
        return Row(path, "link", f"{why} (to {fact.target})")
    return Row(path, "shown", why)
