"""Collecting the facts that plans are made from (layer 3a)."""

from __future__ import annotations

import os
import stat

from cloche.host import accel, tools
from cloche.model.facts import HostFacts, PathFact, Tools, User
from cloche.plan.stage import stage_candidates


def collect_facts() -> HostFacts:
    """Look at the host and at the caller. Nothing is started but, once per version of QEMU, QEMU for its version."""
    qemu = tools.find_system_tool("qemu-system-x86_64")
    return HostFacts(
        user=_caller(),
        cwd=_working_directory(),
        umask=_umask(),
        environment=dict(os.environb),
        paths=_path_facts(stage_candidates()),
        tools=Tools(
            qemu=qemu,
            qemu_version=tools.qemu_version(qemu) if qemu else (0, 0),
            bwrap=tools.find_system_tool("bwrap"),
            warden=tools.find_own_binary("cloche-warden"),
            agent=tools.find_own_binary("cloche-agent"),
            fs=tools.find_own_binary("cloche-fs"),
        ),
        cpus=len(os.sched_getaffinity(0)),
        memory_mib=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // (1024 * 1024),
        kvm=accel.kvm_result(),
        nofile_hard=_nofile_hard(),
    )


def _caller() -> User:
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
    home = entry.pw_dir if entry.pw_dir.startswith("/") and entry.pw_dir != "/" else f"/home/{entry.pw_name}"
    shell = entry.pw_shell if os.access(entry.pw_shell, os.X_OK) else "/bin/sh"
    return User(entry.pw_name, uid, gid, group, os.path.normpath(home), shell, entry.pw_gecos)


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "/"


def _umask() -> int:
    # Linux tells it without changing it; umask(2) could only be asked by setting it, which races with threads.
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return 0o022


def _path_facts(candidates: tuple[str, ...]) -> dict[str, PathFact]:
    facts: dict[str, PathFact] = {}
    for path in candidates:
        try:
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                facts[path] = PathFact("link", os.readlink(path))
            elif stat.S_ISDIR(mode):
                facts[path] = PathFact("dir")
            elif stat.S_ISREG(mode) and os.access(path, os.R_OK):
                facts[path] = PathFact("file")
        except OSError:
            continue
    return facts


def _nofile_hard() -> int:
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return hard if hard != resource.RLIM_INFINITY else 1 << 20
