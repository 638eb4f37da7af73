"""What the agent is asked to do in the guest (layer 1, pure).

The steps of SETUP and the description of a program to start, as in ``protocol/README.md`` section 5. Plans are made
of these; ``cloche.guest.messages`` turns them into bytes.
"""

from __future__ import annotations

from cloche.record import Record


class BindDevice(Record):
    """Bind a platform device that was added after the guest was booted, for instance ``virtio-mmio.6``."""

    name: bytes


class Mkdir(Record):
    """Make a directory and its missing parents (those 0755, root's). One that exists is left as it is."""

    path: bytes
    mode: int = 0o755
    uid: int = 0
    gid: int = 0


#: As the type of a Mount: whichever the guest's kernel finds on the disk.
ANY_TYPE = b"auto"


class Mount(Record):
    """mount(2) in the guest; ``flags`` are the MS_* bits.

    With ``fstype`` ANY_TYPE the agent tries every type of a disk that the kernel knows; ``data`` is then for those that
    keep no owners of files.
    """

    fstype: bytes
    source: bytes
    target: bytes
    flags: int = 0
    data: bytes = b""


class SwitchRoot(Record):
    """Make ``path`` the root; /dev, /proc, /sys and /run move along."""

    path: bytes


class WriteFile(Record):
    """Create or replace a file."""

    path: bytes
    mode: int
    uid: int
    gid: int
    content: bytes


class MakeSymlink(Record):
    """Make a symbolic link, replacing a link or file."""

    target: bytes
    path: bytes


class CopyTree(Record):
    """Copy what is in ``source`` into ``to`` with that owner; a missing source is no error."""

    source: bytes
    to: bytes
    uid: int
    gid: int


class Hostname(Record):
    """Set the host name."""

    name: bytes


class Clock(Record):
    """Set the real-time clock, nanoseconds since the epoch; 0 in a plan means "now, when it is sent"."""

    realtime_ns: int = 0


class Entropy(Record):
    """Credit ``seed`` to the guest's random generator; empty in a plan means "fresh bytes when it is sent"."""

    seed: bytes = b""


class Loopback(Record):
    """Bring ``lo`` up."""


class Interface(Record):
    """Give a network card an IPv4 address and the default route, and bring it up; addresses as numbers."""

    name: bytes
    address: int
    prefix: int
    gateway: int


class Sysctl(Record):
    """Write to /proc/sys/``path``; a missing file is no error."""

    path: bytes
    value: bytes


class Rlimit(Record):
    """A resource limit for every program started later."""

    resource: int
    soft: int
    hard: int


class WaitPath(Record):
    """Wait until ``path`` exists."""

    path: bytes
    timeout_ms: int


class Unmount(Record):
    """umount2(2) in the guest; ``flags`` are the MNT_* and UMOUNT_* bits."""

    target: bytes
    flags: int = 0


class Freeze(Record):
    """Let every program stand still."""


class Thaw(Record):
    """Let them go on."""


class CopyOnce(Record):
    """Copy the directory ``source`` as ``to`` with that owner, unless ``to`` is there: all of it, or nothing."""

    source: bytes
    to: bytes
    uid: int
    gid: int


class Settle(Record):
    """Write back the file system at ``path`` and let nothing more be written to it, as if it were not mounted."""

    path: bytes


class CheckPlace(Record):
    """Fail unless the directory ``path`` is found below ``root`` without a symbolic link on the way from there."""

    root: bytes
    path: bytes


class PutFirst(Record):
    """Put lines before what a file holds (at most 1 MiB); one that is missing is made with this mode, as root's."""

    path: bytes
    mode: int
    content: bytes


Step = (
    BindDevice
    | Mkdir
    | Mount
    | SwitchRoot
    | WriteFile
    | MakeSymlink
    | CopyTree
    | Hostname
    | Clock
    | Entropy
    | Loopback
    | Interface
    | Sysctl
    | Rlimit
    | WaitPath
    | Unmount
    | Freeze
    | Thaw
    | CopyOnce
    | Settle
    | CheckPlace
    | PutFirst
)

#: Flags of mount(2) that plans use (linux/mount.h).
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_REMOUNT = 32
MS_NOATIME = 1024
MS_BIND = 4096
MS_REC = 16384
MS_SILENT = 32768
#: Flags of umount2(2).
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8


class GuestCommand(Record):
    """The program a domain is started for.

    ``pids_max`` 0 means no limit. ``strace`` runs it under the guest's own strace. ``program`` is where the host has
    found it (empty: nowhere for certain): it is tried first, which spares the guest the search. ``ignored`` are the
    signals it ignores from its start, bit N - 1 for signal N; ``nice`` is 0 to 19.
    """

    argv: tuple[bytes, ...]
    env: tuple[bytes, ...]
    cwd: bytes
    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    umask: int = 0o022
    pids_max: int = 0
    strace: bool = False
    program: bytes = b""
    ignored: int = 0
    nice: int = 0
