"""Collecting the facts that plans are made from (layer 3a)."""

from __future__ import annotations

import os
import stat

from cloche.host import accel, cgroups, tools
from cloche.host.caller import ignored_signals, working_directory
from cloche.host.tsc import tsc_khz
from cloche.model.facts import HostFacts, PathFact, SkeletonEntry, Tools, User
from cloche.plan.shares import contains
from cloche.plan.stage import EMPTY_DIRECTORIES, SYSTEM_TREES, stage_candidates
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.model.jail import IdRange

#: As much of /etc/skel as is sent with a plan: far more than distributions put there, and little to send.
_SKELETON_BYTES, _SKELETON_ENTRIES = 64 * 1024, 64


def collect_facts(*, remember: bool = True) -> HostFacts:
    """Look at the host and at the caller. Nothing is started but, once per version of QEMU, QEMU for its version.

    Without ``remember`` what takes long to find out is not kept in the cache: nothing on the host changes.
    """
    qemu = tools.find_system_tool("qemu-system-x86_64")
    warden = tools.find_own_binary("cloche-warden")
    return HostFacts(
        user=find_caller(),
        cwd=working_directory(),
        umask=_umask(),
        environment=dict(os.environb),
        paths=path_facts(stage_candidates()),
        tools=Tools(
            qemu=qemu,
            qemu_version=tools.qemu_version(qemu, remember=remember) if qemu else (0, 0),
            bwrap=tools.find_system_tool("bwrap"),
            warden=warden,
            agent=tools.find_own_binary("cloche-agent"),
            fs=tools.find_own_binary("cloche-fs"),
            disk=tools.find_own_binary("cloche-disk"),
            net=tools.find_own_binary("cloche-net"),
            rng=tools.find_own_binary("cloche-rng"),
            vsock=tools.find_own_binary("cloche-vsock"),
            bundle=tools.find_own_binary("cloche-bundle"),
            passt=tools.find_system_tool("passt"),
        ),
        cpus=len(os.sched_getaffinity(0)),
        memory_mib=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // (1024 * 1024),
        kvm=accel.kvm_result(),
        nofile_hard=_nofile_hard(),
        skeleton=read_skeleton("/etc/skel"),
        filters=_Filters(),
        tsc_khz=tsc_khz(warden, remember=remember) if warden else 0,
        ignored=ignored_signals(),
        nice=os.getpriority(os.PRIO_PROCESS, 0),
        ids=_ids(),
        kvm_group=accel.kvm_group(),
        cgroup=cgroups.find_parent(),
    )


class _Filters(dict[str, bytes]):
    """The filters of system calls by the names of their programs, each read at the first look."""

    def __missing__(self, name: str) -> bytes:
        self[name] = found = tools.read_filter(name)
        return found


def find_caller() -> User:
    """Return who is calling."""
    import grp
    import pwd

    uid, gid = os.getuid(), os.getgid()
    try:
        group = grp.getgrgid(gid).gr_name
    except KeyError:
        group = str(gid)
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return User(f"user{uid}", uid, gid, group, f"/home/user{uid}", "/bin/sh", "")
    shell = entry.pw_shell
    if not (os.access(shell, os.X_OK) and any(contains(tree, shell) for tree in SYSTEM_TREES)):
        shell = "/bin/sh"
    return User(
        entry.pw_name, uid, gid, group, guest_home(entry.pw_dir, entry.pw_name, uid), shell, entry.pw_gecos
    )


def guest_home(directory: str, name: str, uid: int) -> str:
    """Return where the caller's home is in the guest: where it is on the host, but never among the system's own.

    The home is made anew and private; made at ``/usr/games`` or ``/bin``, as some system users have it, it would close
    these to everybody else.
    """
    home = os.path.normpath("/" + directory.lstrip("/")) if directory.startswith("/") else "/"
    if uid == 0 and home == "/root":
        return home
    taken = (*SYSTEM_TREES, "/etc", "/dev", "/proc", "/sys", "/run", "/root")
    if any(contains(home, path) for path, _ in EMPTY_DIRECTORIES) or any(
        contains(tree, home) for tree in taken
    ):
        return f"/home/{name}"
    return home


def _ids() -> IdRange | None:
    if os.getuid() != 0:
        return None
    from cloche.host.ids import find_ids

    return find_ids()


def _umask() -> int:
    # Linux tells it without changing it; umask(2) could only be asked by setting it, which races with threads.
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return 0o022


def path_facts(candidates: tuple[str, ...], root: str = "") -> dict[str, PathFact]:
    """Return what these paths are; with a ``root`` those of a tree that lies there."""
    facts: dict[str, PathFact] = {}
    for path in candidates:
        try:
            full = root + path
            mode = os.lstat(full).st_mode
            if stat.S_ISLNK(mode):
                facts[path] = PathFact("link", os.readlink(full))
            elif stat.S_ISDIR(mode):
                facts[path] = PathFact("dir")
            elif stat.S_ISREG(mode) and os.access(full, os.R_OK):
                facts[path] = PathFact("file")
        except OSError:
            continue
    return facts


def read_skeleton(top: str) -> tuple[SkeletonEntry, ...] | None:
    """Return what is in a skeleton directory; None when it is more than a few small files.

    What the caller may not read, and what is neither file, directory nor link, is left out.
    """
    entries: list[SkeletonEntry] = []
    room = _SKELETON_BYTES
    waiting = [b""]
    while waiting:
        above = waiting.pop()
        try:
            names = sorted(os.listdir(os.path.join(os.fsencode(top), above)))
        except OSError:
            continue
        for name in names:
            path = os.path.join(above, name)
            entry = _skeleton_entry(os.path.join(os.fsencode(top), path), path, room)
            if entry is None:
                continue
            room -= len(entry.content)
            entries.append(entry)
            if room < 0 or len(entries) > _SKELETON_ENTRIES:
                return None
            if entry.kind == "dir":
                waiting.append(path)
    return tuple(entries)


def _skeleton_entry(full: bytes, path: bytes, room: int) -> SkeletonEntry | None:
    try:
        mode = os.lstat(full).st_mode
        if stat.S_ISLNK(mode):
            return SkeletonEntry(path, "link", 0, os.readlink(full))
        if stat.S_ISDIR(mode):
            return SkeletonEntry(path, "dir", stat.S_IMODE(mode))
        if stat.S_ISREG(mode):
            with open(full, "rb", buffering=0) as file:
                return SkeletonEntry(path, "file", stat.S_IMODE(mode), file.read(room + 1) or b"")
    except OSError:
        # Gone, or not for the caller to read.
        return None
    return None


def _nofile_hard() -> int:
    # As getrlimit(2) says; Python's module for that is a library that would have to be loaded.
    with open("/proc/self/limits", "rb") as file:
        hard = next(line.split()[4] for line in file if line.startswith(b"Max open files"))
    return int(hard) if hard != b"unlimited" else 1 << 20
