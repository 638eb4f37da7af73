"""What a user has on a machine because of cloche: to be compared before and after."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from support import leaks

if TYPE_CHECKING:
    from support.users import OrdinaryUser

#: Below the home directory: what may not grow by domains that come and go.
_KEPT = (".cache/cloche", ".local/share/cloche", ".local/state/cloche")
#: What the design allows a domain's processes after their end (a second), and what a busy machine adds.
_END_TIMEOUT_S = 60.0
#: Directories that everybody shares.
_SHARED = ("/dev/shm", "/tmp", "/var/tmp", "/run")


class Belongings(NamedTuple):
    """Everything of one user's.

    Attributes:
        files: Paths in what cloche keeps, of run directories and of the pool.
        bytes: What the template store takes on the disk.
        shared: Paths of the user's in directories that everybody shares.
        mounts: The host's mounts.
        cgroups: The host's cgroups that are called after cloche.
    """

    files: frozenset[str]
    bytes: int
    shared: frozenset[str]
    mounts: tuple[str, ...]
    cgroups: frozenset[str]


def belongings(user: OrdinaryUser) -> Belongings:
    """Return what there is now, when the processes of domains have ended that this session has left (or fail)."""
    left = leaks.leaked({}, leaks.processes(), os.getpid())
    assert not leaks.wait_for_end(left, _END_TIMEOUT_S)
    kept = [user.home / part for part in _KEPT]
    runtime = user.environment().get("XDG_RUNTIME_DIR")
    if runtime:
        kept.append(Path(runtime))
    uid = user.entry.pw_uid
    return Belongings(
        frozenset(path for directory in kept for path in _paths(directory)),
        sum(os.lstat(path).st_blocks * 512 for path in _paths(user.home / ".cache/cloche/templates")),
        frozenset(path for directory in _SHARED for path in _of_user(Path(directory), uid)),
        tuple(_mount_points()),
        frozenset(path for path in _paths(Path("/sys/fs/cgroup")) if "/cloche-" in path),
    )


def _mount_points() -> list[str]:
    return sorted(line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())


def _paths(directory: Path) -> list[str]:
    return [
        os.path.join(top, name)
        for top, directories, files in os.walk(directory)
        for name in (*directories, *files)
    ]


def _of_user(directory: Path, uid: int) -> list[str]:
    found = []
    for path in directory.iterdir() if uid else ():
        try:
            if path.lstat().st_uid == uid:
                found.append(str(path))
        except FileNotFoundError:
            continue
    return found
