"""The confinement of one host process (layer 1, pure data): namespaces, ids, limits, filter and visible files.

The fields are those of ``protocol/warden.md``. Plans are made of these; ``cloche.host.warden`` turns them into bytes.
Paths are bytes because the names of files are.
"""

from __future__ import annotations

from cloche.lean import IntFlag
from cloche.record import Record

#: As ``uid`` or ``gid`` of a jail: the one the warden has, which is the caller's.
AS_IS = 0xFFFF_FFFF
#: In a plan, as ``uid`` and ``gid`` of a jail: an id of the process's own, taken from the plan's range when the plan is
#: carried out.
OWN = 0xFFFF_FFFE
#: More than a domain has processes.
IDS_PER_DOMAIN = 32


class IdRange(Record):
    """Ids for processes that are to share theirs with nobody.

    Attributes:
        first: The first of them.
        domains: For how many domains they are enough, with IDS_PER_DOMAIN each.
    """

    first: int
    domains: int

    def number(self, domain: int, process: int) -> int:
        """Return the id of a process, by two numbers that only it has; ``process`` is below IDS_PER_DOMAIN."""
        return self.first + domain % self.domains * IDS_PER_DOMAIN + process


class Namespace(IntFlag):
    """Namespaces of a process's own (the CLONE_NEW* bits of unshare(2))."""

    MOUNT = 0x0002_0000
    CGROUP = 0x0200_0000
    UTS = 0x0400_0000
    IPC = 0x0800_0000
    USER = 0x1000_0000
    PID = 0x2000_0000
    NET = 0x4000_0000


class JailFlag(IntFlag):
    """Switches of a jail.

    Attributes:
        NO_NEW_PRIVS: Setuid programs and file capabilities give nothing (needed for ``seccomp``).
        SETSID: A session of its own, without a terminal.
        NOT_DUMPABLE: Nothing of the same user can trace it while its jail is built, and it leaves no core file
            and nothing for the host's core handler (whatever ``rlimits`` say).
        KEEP_ROOT: The warden's root, which is the host's; ``root`` must be empty.
        ROOT_WRITABLE: The tmpfs at ``/`` of the new root stays writable (8 MiB).
    """

    NO_NEW_PRIVS = 1
    SETSID = 2
    NOT_DUMPABLE = 4
    KEEP_ROOT = 8
    ROOT_WRITABLE = 16


class BindFlag(IntFlag):
    """How something of the host is bound into a root.

    Attributes:
        RECURSIVE: With what is mounted below; needed in an ordinary user's domain when anything is.
        OPTIONAL: A missing source is no error.
        NOFOLLOW: A source whose last component is a symbolic link is refused.
    """

    READ_ONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    RECURSIVE = 16
    OPTIONAL = 32
    NOFOLLOW = 64


class Dir(Record):
    """Make a directory; one that was bound from the host is left as it is."""

    path: bytes
    mode: int = 0o755


class Bind(Record):
    """Bind a file or directory of the host; ``flags`` are BindFlag bits."""

    source: bytes
    path: bytes
    flags: int


class File(Record):
    """Make a file with this content."""

    path: bytes
    mode: int
    content: bytes


class Symlink(Record):
    """Make a symbolic link that holds ``target``."""

    target: bytes
    path: bytes


class TmpfsFlag(IntFlag):
    """How a tmpfs is kept.

    Attributes:
        HUGE_PAGES: In huge pages, where the kernel has them, for mappings that ask for them by madvise(2).
    """

    HUGE_PAGES = 1


class Tmpfs(Record):
    """Mount an empty tmpfs of at most ``size`` bytes; ``flags`` are TmpfsFlag bits."""

    path: bytes
    size: int
    mode: int = 0o755
    flags: int = 0


class Proc(Record):
    """Mount a proc file system of the process's pid namespace."""

    path: bytes


class Dev(Record):
    """Mount a minimal device directory: null zero full random urandom tty, pts, shm, the links of standard streams."""

    path: bytes


class BindFd(Record):
    """Bind what the packet's descriptor ``fd_index`` refers to (opened with O_PATH); ``flags`` are BindFlag bits."""

    fd_index: int
    path: bytes
    flags: int


RootOp = Dir | Bind | File | Symlink | Tmpfs | Proc | Dev | BindFd


#: What ``--insecure-no-jail`` can leave out of the jails, and what then is missing.
INSECURE_PARTS = {
    "seccomp": "the filters of system calls that are put on from outside, QEMU's own and the supervisor's",
    "namespaces": "the network, ipc, uts and cgroup namespaces",
    "cgroups": "the limits of memory and processes that cgroups hold",
    "ids": "the ids of their own that processes of root's domains run under",
}
#: Without these there is no stage and no end of a domain: they cannot be left out.
INDISPENSABLE = Namespace.USER | Namespace.MOUNT | Namespace.PID


class Jail(Record):
    """The confinement of one process.

    Attributes:
        namespaces: Namespace bits.
        uid: Taken on before the exec, AS_IS for none, OWN (in a plan) for one that nobody else has.
        gid: Likewise.
        keep_caps: The capabilities left, one bit each (CAP_CHOWN is bit 0).
        flags: JailFlag bits.
        hostname: In a UTS namespace of its own; empty leaves it.
        cwd: Inside the new root.
        rlimits: (RLIMIT_* number, soft, hard) each; 2**64 - 1 is no limit.
        seccomp: A classic BPF program, empty for none. It must allow execve, which comes after it.
        root: What the new root is made of, in this order.
    """

    namespaces: int
    uid: int = AS_IS
    gid: int = AS_IS
    keep_caps: int = 0
    flags: int = JailFlag.NO_NEW_PRIVS | JailFlag.SETSID | JailFlag.NOT_DUMPABLE
    hostname: bytes = b""
    cwd: bytes = b"/"
    rlimits: tuple[tuple[int, int, int], ...] = ()
    seccomp: bytes = b""
    root: tuple[RootOp, ...] = ()


class Limits(Record):
    """What a process may use at most, all of it together, what the kernel keeps for it included.

    Attributes:
        memory: In bytes.
        processes: Threads, its first one included.
    """

    memory: int
    processes: int


class SpawnSpec(Record):
    """A process to start in a domain.

    Attributes:
        id: The supervisor's number for it, not in use by a living one.
        name: A word for messages and for ``ps`` until the exec.
        argv: The program's name first. Without ``exe_fd`` that is a path inside the jail.
        env: ``NAME=value`` each, the whole environment.
        fds: The k-th descriptor sent becomes this number in the process (below 256), None for one only named by a
            BindFd. Standard streams not named are /dev/null; nothing else is open.
        exe_fd: One more descriptor is sent, the last: the program itself.
        cgroup: One more is sent, behind those of ``fds``: the directory of the cgroup in which it begins.
    """

    id: int
    name: bytes
    argv: tuple[bytes, ...]
    env: tuple[bytes, ...]
    jail: Jail
    fds: tuple[int | None, ...] = ()
    exe_fd: bool = False
    cgroup: bool = False
