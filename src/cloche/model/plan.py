"""The plan of a launch (layer 1, pure data): everything that will be started, computed before anything is."""

from __future__ import annotations

from cloche.model.machine import Devices
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from cloche.model.facts import User
    from cloche.model.guest import GuestCommand, Step
    from cloche.model.jail import IdRange, Jail, Limits
    from cloche.model.machine import Machine
    from cloche.model.request import Include, RunRequest, Share


class EndpointKind:
    """How a socket between two processes of a domain comes to be. All exist before the processes do.

    LISTEN: a listening Unix socket at a path of the run directory; the supervisor connects to it, again after a cut.
    LINK: a listening socket for a backend, and a connection to it already made for its frontend; no path remains.
    PAIR: a socket pair; the supervisor keeps side ``here``.
    DOOR: a listening Unix socket at a path of the caller's choice, which goes with the domain.
    JOIN: a socket pair of two processes that live and die together: sides ``one`` and ``other``. When one of them dies,
        the other is ended, and both are started anew with a new pair.
    """

    LISTEN = "listen"
    LINK = "link"
    PAIR = "pair"
    DOOR = "door"
    JOIN = "join"


#: Stands in a plan for the run directory, which is made when the plan is carried out. A LISTEN endpoint's socket is
#: there under ``socket_name``.
RUN_DIRECTORY = b"/run-directory"


def socket_name(endpoint: str) -> str:
    """Return the name of a LISTEN endpoint's socket in the run directory."""
    return f"{endpoint}.sock"


class Endpoint(Record):
    """A socket made before any process starts; ``path`` is a DOOR's."""

    name: str
    kind: str
    path: str = ""


class Descriptor(Record):
    """One end of an endpoint as a process receives it.

    ``side`` is ``listen`` or ``connect`` for LISTEN and LINK, ``listen`` for DOOR, ``there`` for PAIR, ``one`` or
    ``other`` for JOIN. ``number`` is the descriptor's number in the process.
    """

    endpoint: str
    side: str
    number: int


class OpenFile(Record):
    """A file of the host as a process receives it: opened and locked before, and without its name.

    Attributes:
        path: Absolute path.
        writable: Opened for writing too, and locked against everybody else; else against writers.
        number: The descriptor's number in the process.
        copied: The process gets a copy that has no name and goes with the machine.
        empty_bytes: Not 0: the process gets a new file of that size in the directory of ``path``, likewise.
    """

    path: str
    writable: bool
    number: int
    copied: bool = False
    empty_bytes: int = 0


class Connection(Record):
    """A connection to somebody on the host, made anew at each start of the process that gets it.

    Attributes:
        path: Where they listen: a Unix stream socket.
        number: The descriptor's number in the process.
        words: What the process is told of it, behind its other arguments. When nobody listens at a later start, the
            process gets neither, and another start when somebody does.
    """

    path: str
    number: int
    words: tuple[bytes, ...]


class Template(Record):
    """A saved machine that a domain goes on from instead of booting. It belongs to the caller.

    It waits to be set up and used; or it was saved while it ran, with everything.

    Attributes:
        directory: Where it lies, an absolute path.
        memory: What goes into the guest's memory: a file as large as that, with holes where nothing was.
        state: What QEMU saved of the devices, as the VMM receives it.
        checksum: The CRC-32 of ``state``.
        target: Where the VMM's root has the file of the guest's memory.
        devices: How many devices it had when it was saved while it ran; 0 for one that was saved before.
        balloon: Whether it has the device by which a guest gives memory back, and a kernel that knows all places.
        is_whole: Memory and state are there. Else the files are, and whoever starts the machine says when it can go on,
            and what the checksum is (``Launcher.go_on``).
        extents: Where something will be in a memory that is not there yet: begin and end of each part.
        bound: How many of a machine's devices, in their order, it had when it was saved before.
        drives: How many of these, the last ones, are empty drives.
    """

    directory: str
    memory: str
    state: OpenFile
    checksum: int
    target: bytes
    devices: int = 0
    balloon: bool = True
    is_whole: bool = True
    extents: tuple[tuple[int, int], ...] = ()
    bound: int = 0
    drives: int = 0


class ProcessPlan(Record):
    """One process of a domain, with its jail.

    Attributes:
        files: What it has open when it starts.
        connections: Whom it is connected with.
        limits: What it may use at most, in a cgroup of its own; None where there are none.
        restarts: It is started anew when it dies, with the same descriptors, and whoever talked to it connects again.
        executable: A static program of the host, passed as a descriptor and so invisible in the jail; empty when
            ``argv[0]`` is a path inside the jail.
        essential: The domain ends with this process.
    """

    name: str
    argv: tuple[bytes, ...]
    env: tuple[bytes, ...]
    descriptors: tuple[Descriptor, ...]
    jail: Jail
    executable: str = ""
    essential: bool = True
    files: tuple[OpenFile, ...] = ()
    connections: tuple[Connection, ...] = ()
    restarts: bool = False
    limits: Limits | None = None


class SharingPlan(Record):
    """What is shared with a domain from its start, and how more can be.

    Attributes:
        shares: Those of the start.
        numbers: Under which each of them is in the stage of ``server``.
        includes: What was copied in: no share may be in its place.
        user: Whose home the guest has.
        writable: Whether the server can change files; where nothing was to be writable it cannot.
        server: The process that serves shares; empty when nothing can be added or taken away.
        orders: The endpoint on which it is told what was taken away.
        stage: Where it has its tree.
    """

    shares: tuple[Share, ...]
    includes: tuple[Include, ...]
    user: User
    writable: bool = False
    server: str = ""
    orders: str = ""
    stage: bytes = b""
    numbers: tuple[int, ...] = ()


class VsockPlan(Record):
    """How a guest's programs connect to programs of the host.

    Attributes:
        path: The path of the domain's own socket; with a port behind it that of who listens for the guest.
        asks: The endpoint on which the supervisor is asked for these.
    """

    path: str
    asks: str


class LayerPlan(Record):
    """What a writable layer on a profile's disk asks of the domain beside its set-up.

    Attributes:
        name: The profile's.
        closing: What the agent does at the end, so that the disk is as if it had been unmounted.
        check: A program that looks at the disk before it is mounted; None when it was closed cleanly.
        setup: What the agent does after the check.
        renewal: A program that brings up to date what the layer holds of an older host; None when that is the same.
    """

    name: str
    closing: tuple[Step, ...]
    check: GuestCommand | None = None
    setup: tuple[Step, ...] = ()
    renewal: GuestCommand | None = None


class LaunchPlan(Record):
    """A domain, before it exists.

    Attributes:
        isolation: What the driver gives (``model.machine.Isolation``).
        machine: None for drivers without one.
        endpoints: In the order in which they are made.
        processes: In the order in which they are started.
        control: The endpoint on which the agent answers.
        console: The endpoint of the guest's console, empty for none.
        monitor: The endpoint of the VMM's monitor, empty for none.
        memory: The file of the guest's memory in the VMM's root, empty for none.
        setup: What the agent does before the command.
        writable_shares: Whether the guest's writes, to shares or disks, must be synced before the machine is taken
            away.
        boot_timeout_s: Until the agent must have answered, in seconds.
        notices: Lines the user should read (weaker isolation, slower accelerator).
        devices: Where the machine's devices are (``model.machine.Devices``).
        ids: What an id of a process's own (``model.jail.OWN``) is taken from; None where no jail asks for one.
        sharing: What is shared with it, and how more can be.
        insecure: Parts of the jails that were given up because the user asked for it (``RunRequest.insecure``).
        cgroup: The cgroup of the host, a directory, below which the domain's are; empty when its processes have none.
        template: What the machine goes on from; None when it boots.
        request: What it was planned for.
        slots: The places of its devices, in their order, where devices can be added later.
        balloon: Whether it has the device by which a guest gives memory back.
        cold: Why it boots, in a clause; empty when it does not.
        name: What the domain is to be called; empty for nothing but its identity.
        layer: What its writable layer needs when it is a profile's; None when it is in memory.
        vsock: How its guest reaches sockets of the host; None when it does not.
    """

    driver: str
    isolation: str
    machine: Machine | None
    endpoints: tuple[Endpoint, ...]
    processes: tuple[ProcessPlan, ...]
    control: str
    console: str
    monitor: str
    setup: tuple[Step, ...]
    command: GuestCommand
    writable_shares: bool
    boot_timeout_s: float
    timeout_s: float | None
    sharing: SharingPlan
    notices: tuple[str, ...] = ()
    devices: str = Devices.PROCESS
    insecure: tuple[str, ...] = ()
    ids: IdRange | None = None
    memory: bytes = b""
    cgroup: str = ""
    template: Template | None = None
    cold: str = ""
    name: str = ""
    request: RunRequest | None = None
    slots: tuple[int, ...] = ()
    balloon: bool = False
    layer: LayerPlan | None = None
    vsock: VsockPlan | None = None
