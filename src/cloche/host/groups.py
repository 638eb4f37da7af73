"""The control groups of a process (layer 3a): a run counts in those of its caller, whoever made its machine."""

from __future__ import annotations

import os

from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: What /proc calls the one hierarchy of version 2: it has no controllers there (cgroups(7)).
UNIFIED = ""


def groups_of(process: int | str) -> dict[str, str]:
    """Return the groups of a process: hierarchy to path. Those that have no name here are left out."""
    with open(f"/proc/{process}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        parts = (line.rstrip("\n").split(":", 2) for line in file)
        return {hierarchy: path for _, hierarchy, path in parts if "/.." not in path}


def mounts() -> dict[str, str]:
    """Return where each hierarchy is mounted."""
    found = {}
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            root, place = before.split()[3:5]
            kind, _, options = after.split()[:3]
            if root != "/" or not kind.startswith("cgroup"):
                continue
            names = [word for word in options.split(",") if word not in ("rw", "ro")]
            found[UNIFIED if kind == "cgroup2" else ",".join(names)] = place
    return found


def follow(leader: int, pids: Iterable[int], *, but: tuple[str, ...] = ()) -> bool:
    """Move processes into the groups of another one, where this process is in others; whether all could be.

    What they use from then on is counted there. Memory that they have stays counted where it was (cgroup-v2.rst,
    "Memory Ownership").

    Args:
        leader: Whose groups.
        pids: Which processes; those that have ended meanwhile are left out.
        but: Hierarchies that are left alone.
    """
    try:
        mine, theirs = groups_of("self"), groups_of(leader)
    except OSError:
        return False  # it has ended
    others = {name: path for name, path in theirs.items() if mine.get(name) != path and name not in but}
    if not others:
        return True
    places, all_moved = mounts(), True
    for name, path in others.items():
        try:
            group = os.open(f"{places[name]}{path}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        except (OSError, KeyError):
            all_moved = False
            continue
        for pid in pids:
            try:
                os.write(group, b"%d" % pid)
            except ProcessLookupError:
                continue
            except OSError:
                all_moved = False
        os.close(group)
    return all_moved
