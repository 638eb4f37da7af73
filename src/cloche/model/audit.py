"""What a running domain's processes must be held by (layer 1, pure data), whatever plan they were started from.

These are the promises of SECURITY.md, one entry for each kind of process. A unit test holds every plan of the drivers
to them; ``cloche audit`` holds the kernel's own account of a running domain to them.
"""

from __future__ import annotations

from cloche.model.machine import Devices
from cloche.record import Record

#: The namespaces of a device process and of the VMM, by the names in /proc/PID/ns: all there are.
ALL = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
#: What root's file servers keep that only read: dac_read_search.
READER_CAPABILITIES = 1 << 2
#: What root's file server of shares keeps, to give every file its owner: chown, dac_override, fowner, fsetid, setgid,
#: setuid.
OWNER_CAPABILITIES = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7


class Hold(Record):
    """What must hold a process.

    Attributes:
        role: The process, as messages call it.
        capabilities: The most it may have, one bit each; None when it is trusted with all.
        no_new_privs: Whether it must have given up setuid programs and file capabilities.
        filters: How many filters of system calls it must have besides those the supervisor has itself.
        namespaces: In which it must be apart from the supervisor.
        closed: Whether others of its user must not be able to look into it ("not dumpable").
        no_core: Whether it must leave no core file.
        session: Whether its session must be its own.
        own_root: Whether its root must be a read-only one of its own.
        writable: Where file systems of the host may be mounted writable, below it when it ends with a slash; None when
            that is not looked at.
        own_id: Whether, where root is the owner, it must run under an id that nobody else has.
        calls: The policy whose number of calls it may make; empty for none.
        bounding: Whether its bounding set is looked at, which says what a program that is executed could get.
        devices: Whose devices it holds together (``model.machine.NOT_APART``); empty where they are apart.
    """

    role: str
    capabilities: int | None = 0
    no_new_privs: bool = True
    filters: int = 0
    namespaces: tuple[str, ...] = ()
    closed: bool = False
    no_core: bool = True
    session: bool = True
    own_root: bool = False
    writable: tuple[str, ...] | None = None
    calls: str = ""
    own_id: bool = False
    devices: str = ""
    bounding: bool = True


#: The supervisor works with all rights of the caller's; its filter takes away what it never needs, and is put on when
#: its machine has come up. Whatever session it was started in is its own affair.
SUPERVISOR = Hold("supervisor", None, filters=1, no_core=False, session=False, calls="supervisor")
#: The outer process waits for PID 1, keeps the supervisor's terminal, and does nothing else; it runs no foreign code
#: and hears only the supervisor.
WARDEN = Hold("warden", None, False, no_core=False)
#: PID 1 builds the jails, so it needs every right in the domain's own namespaces; its filter takes key rings away.
INIT = Hold(
    "warden/1",
    None,
    False,
    filters=1,
    namespaces=("user", "mnt", "pid"),
    closed=True,
    no_core=False,
)
#: The key rings' filter, the outer one, and the one from inside.
_DEVICE_FILTERS = 3


def device(role: str, calls: str, *, capabilities: int = 0, writable: tuple[str, ...] = ()) -> Hold:
    """Return what must hold a device process."""
    return Hold(
        role,
        capabilities,
        filters=_DEVICE_FILTERS,
        namespaces=ALL,
        closed=True,
        own_root=True,
        writable=writable,
        calls=calls,
        own_id=True,
    )


#: QEMU is dumpable: the exec makes it so, and it does not undo it. Nothing else of its domain sees it.
VMM = Hold(
    "vmm",
    filters=_DEVICE_FILTERS,
    namespaces=ALL,
    own_root=True,
    writable=tuple(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "kvm")),
    calls="qemu",
    own_id=True,
)
#: QEMU connects again to processes that have died; their sockets are all that is in this directory.
RECONNECT_DIRECTORY = "/run/devices/"
RECONNECTING_VMM = VMM._replace(writable=(*(VMM.writable or ()), RECONNECT_DIRECTORY), calls="qemu-reconnect")
#: passt is in the host's network, which is what it is for. It makes a user namespace of its own in which it drops
#: everything but the bounding set, which the kernel has filled there; its own filter executes nothing.
PASST = Hold(
    "passt",
    filters=_DEVICE_FILTERS,
    namespaces=tuple(name for name in ALL if name != "net"),
    closed=True,
    own_root=True,
    writable=(),
    calls="passt",
    own_id=True,
    bounding=False,
)
#: Where the shares are in a jail that shows other trees, too.
_SHARES = "/stage/shares/"
#: A QEMU that does the work of all devices itself.
LADEN_VMM = VMM._replace(writable=(*(VMM.writable or ()), _SHARES), calls="qemu-devices", devices=Devices.VMM)
#: bubblewrap waits for what is in its container.
CONTAINER = Hold("container", filters=1, namespaces=("user", "mnt", "pid"))
#: The agent and the programs in a container share the host's kernel, and hardly any filter is between.
CONTAINED = Hold("contained", filters=1, namespaces=ALL, session=False)


def _hold_together(writable: bool, *, as_root: bool) -> tuple[int, bool]:
    """Return the capabilities of whoever serves all trees, and whether its id must be its own."""
    if not as_root:
        return 0, True
    return READER_CAPABILITIES | (OWNER_CAPABILITIES if writable else 0), not writable


def hold_of_program(program: str, argv: tuple[bytes, ...], *, as_root: bool) -> Hold | None:
    """Return what must hold a process below PID 1 that executes a file of this name; None when no policy knows it."""
    if program == "cloche-fs":
        role = "fs-system" if b"forever" in argv else "fs-shares"
        if b"--readonly" in argv:
            return device(role, program, capabilities=READER_CAPABILITIES if as_root else 0)
        owner = device(
            role, program, capabilities=OWNER_CAPABILITIES if as_root else 0, writable=("/stage/",)
        )
        # Who may become anybody could become root again: another id would hold nothing back.
        return owner._replace(own_id=False)
    if program == "cloche-bundle":
        caps, own_id = _hold_together(argv.count(b"--readonly") < argv.count(b"--root"), as_root=as_root)
        bundle = device("devices", program, capabilities=caps, writable=(_SHARES,))
        return bundle._replace(devices=Devices.BUNDLED, own_id=own_id)
    if program.startswith("qemu-system-"):
        if b"-fsdev" in argv:
            trees = [word for word in argv if word.startswith(b"local,")]
            caps, own_id = _hold_together(not all(b"readonly=on" in word for word in trees), as_root=as_root)
            return LADEN_VMM._replace(capabilities=caps, own_id=own_id)
        reconnects = any(RECONNECT_DIRECTORY.encode() in word for word in argv)
        return RECONNECTING_VMM if reconnects else VMM
    if program == "passt":
        return PASST
    if program == "bwrap":
        return CONTAINER
    if program.startswith("cloche-") and program != "cloche-warden":
        return device(program.removeprefix("cloche-"), program)
    return None
