"""Looking at a system tree that is not the host's (layer 3a), before anything is started."""

from __future__ import annotations

import os
import pwd

from cloche.errors import ShareError
from cloche.host.images import look_at_image
from cloche.host.paths import absolute, share_directory
from cloche.model.request import Root, RootKind
from cloche.plan.roots import parse_root
from cloche.plan.shares import contains
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.model.request import Disk

_TAG = "mount.root"
_SHELL = "/bin/sh"
#: File systems that are the host's kernel: a tree that somebody works in by chroot(8) often has them mounted.
_KERNELS_OWN = (b"proc", b"sysfs", b"devtmpfs", b"devpts", b"cgroup", b"cgroup2", b"securityfs", b"debugfs")


def resolve_root(word: str) -> tuple[Root, tuple[Disk, ...]]:
    """Turn the argument of ``--root`` into a root, and its disk if it is an image.

    Raises:
        UsageError: The word is malformed.
        ShareError, DiskError: It is not there, may not be used, or would show the host's own.
    """
    read = parse_root(word)
    machine_id = os.urandom(16).hex()
    if os.path.isdir(absolute(read.path)):
        source = share_directory(read.path, False, "/root").source
        with open("/proc/self/mountinfo", "rb") as file:
            refuse_mounts(source, file.read())
        return Root(RootKind.DIRECTORY, source, machine_id, _shell_in(source)), ()
    disk = look_at_image(_TAG, read.path, read.format, False)
    return Root(RootKind.IMAGE, disk.tag, machine_id, _SHELL, read.fs, read.part), (disk,)


def _shell_in(tree: str) -> str:
    """Return the caller's shell, if the tree has it."""
    try:
        shell = pwd.getpwuid(os.getuid()).pw_shell
    except KeyError:
        return _SHELL
    return shell if shell.startswith("/") and os.path.exists(tree + shell) else _SHELL


def refuse_mounts(tree: str, mountinfo: bytes) -> None:
    """Refuse a tree in which the host's kernel is mounted: a guest would see the host's processes and devices.

    The fields of a line are those of proc_pid_mountinfo(5): the place is the fifth, the type the first behind " - ".

    Raises:
        ShareError: It is.
    """
    for line in mountinfo.splitlines():
        before, _, after = line.partition(b" - ")
        place = os.fsdecode(before.split(b" ")[4].replace(b"\\040", b" "))
        if contains(tree, place) and after.split(b" ")[0] in _KERNELS_OWN:
            raise ShareError(
                f"{tree} cannot be a guest's root: the host has its own {os.path.basename(place)} at {place}",
                hint=f"`umount {place}` first: the guest brings its own.",
            )
