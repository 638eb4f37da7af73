"""What a user asks for (layer 1, pure): the command line or an API call, before facts and plans."""

from __future__ import annotations

from cloche.model.machine import Devices
from cloche.model.profile import KEPT_BYTES, KEPT_STARTS
from cloche.record import Record


class Share(Record):
    """A directory or file of the host that the guest may see.

    Attributes:
        source: Absolute path on the host, links resolved.
        target: Where it appears in the guest.
        writable: Whether the guest may change it.
    """

    source: str
    target: str
    writable: bool


class Include(Record):
    """A host file copied into the guest before the program starts."""

    source: str
    target: str


class Disk(Record):
    """A file or block device of the host that the guest has as a disk.

    Attributes:
        tag: Its name: the guest finds it at /dev/disk/by-tag/``tag``, and it is the disk's serial number.
        path: Absolute path on the host, links resolved.
        format: How the bytes of the disk are kept in the file: ``raw`` or ``qcow2``.
        writable: Whether the guest may change it.
        most_bytes: The largest its file may become, None for what cannot grow (a block device).
        copied: The guest gets a copy of it, which goes with the machine.
        empty: There is no file yet: the guest gets a new one of ``most_bytes`` in the directory of ``path``, without a
            name, which goes with the machine.
        undo: The file that what is overwritten is kept in first; empty for none.
        undo_bytes: The largest that may become.
        is_whole: It can be changed and has no table of partitions, so nothing has to be looked for on it.
    """

    tag: str
    path: str
    format: str = "raw"
    writable: bool = True
    most_bytes: int | None = 0
    copied: bool = False
    empty: bool = False
    undo: str = ""
    undo_bytes: int = 0
    is_whole: bool = False


class MountKind:
    """What a mount shows.

    HOST_BIND: a directory of the host; in a request it is a Share. HOST_IMAGE: the file system in a disk's image, found
    by the guest's kernel. GUEST_BIND: a directory of the guest at another place. RAM: a new one in the guest's memory.
    """

    HOST_BIND = "host-bind"
    HOST_IMAGE = "host-image"
    GUEST_BIND = "guest-bind"
    RAM = "ram"


#: The options of each kind beside ``at``.
MOUNT_OPTIONS = {
    MountKind.HOST_BIND: ("ro", "rw"),
    MountKind.HOST_IMAGE: ("ro", "rw", "format", "fs", "part"),
    MountKind.GUEST_BIND: ("ro", "rw"),
    MountKind.RAM: ("size",),
}


class GuestMount(Record):
    """Something that the guest mounts by itself; all without set-user-id programs and devices.

    Attributes:
        kind: One of MountKind but HOST_BIND.
        target: Where, in the guest.
        source: HOST_IMAGE: the tag of the disk. GUEST_BIND: the directory of the guest. Else empty.
        writable: Whether programs of the guest may change it.
        fs: HOST_IMAGE: the type of the file system, empty for whatever is found.
        part: HOST_IMAGE: the number of the partition, 0 for the whole disk.
        size_bytes: RAM: the most it may hold.
    """

    kind: str
    target: str
    source: str = ""
    writable: bool = False
    fs: str = ""
    part: int = 0
    size_bytes: int = 0


class RootKind:
    """Where a guest's system tree comes from, if not from the host: a DIRECTORY of the host, or an IMAGE."""

    DIRECTORY = "directory"
    IMAGE = "image"


class Root(Record):
    """The system tree of another system; all of it is shown, and changes go to the guest's writable layer.

    Attributes:
        kind: One of RootKind.
        source: DIRECTORY: an absolute path, links resolved. IMAGE: the tag of the disk.
        machine_id: 32 hexadecimal digits for the guest.
        shell: What a program of the caller's is told to be the shell: one that the tree has.
        fs, part: IMAGE: as in a GuestMount.
    """

    kind: str
    source: str
    machine_id: str
    shell: str = "/bin/sh"
    fs: str = ""
    part: int = 0


class NetworkKind:
    """Who is at the other end of a guest's network card.

    SOCKET: whoever listens at a Unix socket of the host. USER: a passt of the domain's own, which opens connections in
    the host's network as one of the caller's programs would.
    """

    SOCKET = "socket"
    USER = "user"


class Network(Record):
    """A network card of the guest.

    Attributes:
        path: For SOCKET the absolute path of a Unix stream socket. Whoever listens there speaks frames, each behind its
            length in four bytes, highest first, as QEMU's ``-netdev stream`` and passt do. Else empty.
        mac: The card's address.
        mtu: Bytes that a frame carries, at most.
        kind: One of NetworkKind.
        after_disks: How many of the machine's disks have their transports before the card; None: all. Those that came
            when it was there have theirs behind it.
    """

    path: str
    mac: str
    mtu: int = 1500
    kind: str = NetworkKind.SOCKET
    after_disks: int | None = None


class Layer(Record):
    """The profile whose disk a domain's writable layer is on.

    Attributes:
        name: What its owner calls it.
        image: Its disk, an absolute path.
        needs_check: The disk was not closed cleanly, and the file system on it is looked at before it is mounted.
        is_outdated: The host's system was changed since caches on it were made.
        kept_starts: How many starts can be gone back to.
        kept_bytes: How much room that may take.
    """

    name: str
    image: str
    needs_check: bool = False
    is_outdated: bool = False
    kept_starts: int = KEPT_STARTS
    kept_bytes: int = KEPT_BYTES


class RunRequest(Record):
    """One run, as asked for.

    Attributes:
        argv: The program and its arguments, bytes as the host's kernel would pass them.
        network: None means none but the guest's own loopback.
        env: Variables added to or replacing the guest's own.
        workdir: Directory to start in; None: the caller's if the guest has it, else the home.
        user: Name or number to run as; None: the caller.
        privileged: Run as root inside.
        memory_mib: None means the default.
        timeout_s: Wall time after which the program is ended; None means none.
        pids: The most processes the program may have; None means no limit.
        kernel: A kernel's name; None lets cloche choose.
        accelerator: ``kvm``, ``tcg`` or None for what was found to work.
        devices: Where the machine's devices are (``model.machine.Devices``).
        hwrng: Whether it has a device that gives random numbers.
        vsock: The absolute path at which the host's programs reach sockets of the guest, and with a port behind it
            those at which they listen for it; empty for none.
        insecure: Parts of the jails to leave out (``model.jail.INSECURE_PARTS``), for hosts that cannot have them.
        share_later: Be ready to take shares while it runs, although there is none at the start.
        layer: The profile that keeps what is changed; None when nothing does.
        cold: Boot, and do not go on from a template.
        name: What the domain is to be called; empty for nothing but its identity.
        share_numbers: Under which numbers the shares lie in the stage; empty for 0, 1, ... A machine that was saved has
            its own.
    """

    argv: tuple[bytes, ...]
    driver: str = "qemu"
    shares: tuple[Share, ...] = ()
    includes: tuple[Include, ...] = ()
    disks: tuple[Disk, ...] = ()
    mounts: tuple[GuestMount, ...] = ()
    root: Root | None = None
    network: Network | None = None
    env: tuple[tuple[bytes, bytes], ...] = ()
    workdir: str | None = None
    user: str | None = None
    privileged: bool = False
    memory_mib: int | None = None
    cpus: int | None = None
    timeout_s: float | None = None
    pids: int | None = None
    kernel: str | None = None
    accelerator: str | None = None
    boot_timeout_s: float | None = None
    boot_log: bool = False
    agent_log: bool = False
    shell_on_failure: bool = False
    strace: bool = False
    devices: str = Devices.PROCESS
    hwrng: bool = False
    vsock: str = ""
    insecure: tuple[str, ...] = ()
    share_later: bool = False
    layer: Layer | None = None
    cold: bool = False
    name: str = ""
    share_numbers: tuple[int, ...] = ()
