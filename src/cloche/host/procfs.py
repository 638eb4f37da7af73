"""What the kernel says about a process (layer 3a): /proc read, and nothing believed that a plan or the process says.

As an ordinary user much of a process that is not dumpable is closed even to its owner. Most of it is open all the same,
because the caller owns the user namespace in which the processes of a domain live, and has every capability there:
``ns/``, ``exe`` and ``fdinfo/`` can be read, and pidfd_getfd(2) gives a copy of a descriptor, whose link says what it
is. What stays closed is named in ``Process.hidden``. Sources: proc(5), ptrace(2) ("access mode checking"),
user_namespaces(7), fs/proc/base.c.
"""

from __future__ import annotations

import os

from cloche.host.cgroups import Counted, read_limits
from cloche.host.fdlook import OpenFile, Sockets, read_files
from cloche.host.pids import has_ended, start_time, stat_fields
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Names of namespaces in /proc/PID/ns.
NAMESPACES = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
#: The sets of capabilities in /proc/PID/status.
CAPABILITY_SETS = ("inheritable", "permitted", "effective", "bounding", "ambient")
_CAPABILITY_FIELDS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
CAP_SYS_PTRACE = 1 << 19
#: More than the kernel says of any process; what a process may write there itself (its arguments) may be cut.
_MOST = 64 << 20


class Mount(Record):
    """One mount a process sees.

    Attributes:
        ident: The mount's number.
        device: The file system's number; the same wherever it is mounted.
        path: Where it is.
        kind: The file system's type.
        writable: Whether it can be written to there.
    """

    ident: int
    device: str
    path: str
    kind: str
    writable: bool


class Process(Record):
    """One process.

    Attributes:
        parent: The parent's id.
        start: When it was started, in clock ticks since the host's boot; with ``pid`` it names a process for good.
        name: As it calls itself.
        program: The file it executes (in its own root); empty when the kernel does not tell.
        argv: Its arguments, as its memory has them.
        uids, gids: Real, effective, saved, file system.
        capabilities: One mask for each of CAPABILITY_SETS; of several threads, what any of them has.
        no_new_privs: Whether all threads have it.
        seccomp: The mode (0 none, 1 strict, 2 filters).
        filters: The filters of system calls; of several threads, the least.
        namespaces: Number of each namespace; what cannot be read is missing.
        pids: Its id in each pid namespace, the host's first.
        sessions: Its session's id in each, likewise.
        id_map: Its user namespace's map of user ids.
        dumpable: Whether others of its user may look into it; None when that cannot be told.
        core_limit: The hard limit of core files in bytes; None for none.
        file_limit: The hard limit of how large a file it can make, in bytes; None for none.
        limits: How its cgroup limits it, and which that is.
        programs: The filters themselves, the first one first; None when they cannot be read.
        rss_kib: Resident memory.
        pss_kib: The same with what is shared divided by those who share it; None when it cannot be read.
        files: Its open files; None when they cannot be read.
        mounts: What is mounted in its root.
        hidden: What could not be read, a clause each.
    """

    pid: int
    parent: int
    start: int
    name: str
    program: str
    argv: tuple[bytes, ...]
    uids: tuple[int, ...]
    gids: tuple[int, ...]
    groups: tuple[int, ...]
    capabilities: tuple[int, ...]
    no_new_privs: bool
    seccomp: int
    filters: int
    namespaces: dict[str, int]
    pids: tuple[int, ...]
    sessions: tuple[int, ...]
    id_map: str
    dumpable: bool | None
    core_limit: int | None
    threads: int
    rss_kib: int
    pss_kib: int | None
    files: tuple[OpenFile, ...] | None
    mounts: tuple[Mount, ...]
    hidden: tuple[str, ...]
    file_limit: int | None = None
    programs: tuple[bytes, ...] | None = None
    limits: Counted = Counted("")


def descendants(top: int) -> tuple[int, ...]:
    """Return a process and all below it, parents before children. A zombie has ended: it is not among them."""
    below: dict[int, list[int]] = {}
    for pid in _all_processes():
        try:
            fields = stat_fields(pid)
        except OSError:
            continue  # it ended meanwhile
        if not has_ended(fields):
            below.setdefault(int(fields[1]), []).append(pid)
    found = [top]
    for pid in found:
        found += sorted(below.get(pid, ()))
    return tuple(found)


def read_process(pid: int, sockets: Sockets) -> Process | None:
    """Look at a process; None when it has ended.

    Args:
        pid: Its id.
        sockets: The sockets of the network namespace in which the domain's were made.

    Raises:
        OSError: It lives, and the kernel does not tell what it tells everybody (a /proc mounted with hidepid).
    """
    begin = start_time(pid)
    for last in (False, False, True):
        try:
            seen = None if begin is None else _look(pid, begin, sockets)
        except (FileNotFoundError, ProcessLookupError):
            # Something of it is gone. It must not be overlooked if it is not itself what is gone.
            if last and _lives(pid, begin):
                raise
            continue
        # The number may have been given to another process meanwhile.
        return seen if _lives(pid, begin) else None
    return None


def _lives(pid: int, start: int | None) -> bool:
    try:
        fields = stat_fields(pid)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return not has_ended(fields) and int(fields[19]) == start


def _look(pid: int, start: int, sockets: Sockets) -> Process:
    status = _status(_text(f"/proc/{pid}/status"))
    threads = tuple(_threads(pid))
    hidden: list[str] = []
    uids = _numbers(status["Uid"])
    capabilities = tuple(_union(int(thread[field], 16) for thread in threads) for field in _CAPABILITY_FIELDS)
    namespaces = _namespaces(pid)
    if len(namespaces) < len(NAMESPACES):
        hidden.append("namespaces")
    program = _link(f"/proc/{pid}/exe")
    if not program:
        hidden.append("program file")
    files = read_files(pid, sockets)
    if files is None:
        hidden.append("open files")
    pss = pss_kib(pid)
    if pss is None:
        hidden.append("shared memory")
    return Process(
        pid=pid,
        parent=int(status["PPid"]),
        start=start,
        name=status["Name"],
        program=program,
        argv=tuple(_bytes(f"/proc/{pid}/cmdline").split(b"\0")[:-1]),
        uids=uids,
        gids=_numbers(status["Gid"]),
        groups=_numbers(status["Groups"]),
        capabilities=capabilities,
        no_new_privs=all(thread["NoNewPrivs"] == "1" for thread in (status, *threads)),
        seccomp=min(int(thread["Seccomp"]) for thread in (status, *threads)),
        filters=min(int(thread["Seccomp_filters"]) for thread in (status, *threads)),
        namespaces=namespaces,
        pids=_numbers(status["NSpid"]),
        sessions=_numbers(status["NSsid"]),
        id_map=" ".join(_text(f"/proc/{pid}/uid_map").split()),
        dumpable=_dumpable(pid, uids[1], capabilities[1]),
        core_limit=_limit(pid, "Max core file size"),
        threads=int(status["Threads"]),
        rss_kib=int(status.get("VmRSS", "0 kB").split()[0]),
        pss_kib=pss,
        files=files,
        mounts=tuple(_mounts(_text(f"/proc/{pid}/mountinfo"))),
        hidden=tuple(hidden),
        file_limit=_limit(pid, "Max file size"),
        programs=_programs(pid),
        limits=read_limits(pid),
    )


def _threads(pid: int) -> Iterator[dict[str, str]]:
    """Yield what is said of each thread: a filter or a capability is a thread's own."""
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            yield _status(_text(f"/proc/{pid}/task/{task}/status"))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile, and the others are looked at


def _namespaces(pid: int) -> dict[str, int]:
    found = {}
    for name in NAMESPACES:
        # Looks like net:[4026531833].
        _, bracket, number = _link(f"/proc/{pid}/ns/{name}").partition("[")
        if bracket:
            found[name] = int(number.rstrip("]"))
    return found


def _dumpable(pid: int, uid: int, permitted: int) -> bool | None:
    """Tell whether a process is dumpable: the kernel gives its files in /proc to root when it is not.

    Of a process that is root's these are root's either way. So a child of ours tries, in that process's user namespace
    and with the capabilities it has itself, what is allowed to an equal if the other one is dumpable.
    """
    if uid != 0:
        return os.stat(f"/proc/{pid}/status").st_uid == uid
    from cloche.host.nsprobe import may_look_into

    looked = may_look_into(pid, permitted)
    # With this capability it would be allowed in any case (but for a process that came from outside the namespace).
    return None if looked and permitted & CAP_SYS_PTRACE else looked


def _limit(pid: int, name: str) -> int | None:
    for line in _text(f"/proc/{pid}/limits").splitlines():
        if line.startswith(name):
            # The name, the soft limit, the hard one, the unit.
            hard = line[len(name) :].split()[1]
            return None if hard == "unlimited" else int(hard)
    return None


def _programs(pid: int) -> tuple[bytes, ...] | None:
    if os.geteuid() != 0:
        return None
    from cloche.host.ptrace import read_filters

    return read_filters(pid)


def pss_kib(pid: int) -> int | None:
    """Return a process's memory with what is shared divided by those who share it; None when that cannot be read."""
    try:
        lines = _text(f"/proc/{pid}/smaps_rollup").splitlines()
    except (PermissionError, FileNotFoundError, ProcessLookupError):
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), None)


def _mounts(text: str) -> Iterator[Mount]:
    for line in _lines(text):
        # id parent device root PATH OPTIONS tags... - KIND source options
        before, _, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if len(fields) > 5 and len(rest) > 2:
            writable = "rw" in fields[5].split(",") and "ro" not in rest[2].split(",")
            yield Mount(int(fields[0]), fields[2], fields[4], rest[0], writable)


def _status(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in _lines(text))
    return {name: value.strip() for name, _, value in pairs}


def _lines(text: str) -> list[str]:
    """Return the kernel's lines. To str.splitlines more characters end one, which a name may hold (a form feed)."""
    return text.split("\n")[:-1]


def _all_processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split())


def _union(masks: Iterator[int]) -> int:
    union = 0
    for mask in masks:
        union |= mask
    return union


def _link(path: str) -> str:
    """Return where a link of the kernel's leads, or nothing when it may not be read."""
    try:
        return os.readlink(path)
    except PermissionError:
        return ""


def _text(path: str) -> str:
    return _bytes(path).decode("utf-8", "surrogateescape")


def _bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(_MOST)
