"""What the agent does before the program, and the program's surroundings (layer 2, pure)."""

from __future__ import annotations

from cloche.errors import UsageError
from cloche.model.guest import (
    MNT_DETACH,
    MS_NODEV,
    MS_NOSUID,
    MS_RDONLY,
    UMOUNT_NOFOLLOW,
    BindDevice,
    Clock,
    CopyTree,
    Entropy,
    GuestCommand,
    Hostname,
    Loopback,
    MakeSymlink,
    Mkdir,
    Mount,
    Step,
    SwitchRoot,
    Sysctl,
    Thaw,
    Unmount,
    WriteFile,
)
from cloche.model.machine import Devices
from cloche.model.request import RootKind
from cloche.plan.shares import contains
from cloche.plan.stage import EMPTY_DIRECTORIES, SYSTEM_TREES
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.model.facts import HostFacts, SkeletonEntry, User
    from cloche.model.request import Include, RunRequest

SYSTEM_TAG = b"system"
SHARES_TAG = b"shares"
#: Where the system tree is mounted before it is laid under the writable layer.
SYSTEM_PLACE = b"/cloche/system"
#: What an idle guest's kernel would do all the same: look twice a second whether memory is in pieces, and once a second
#: whether a CPU holds back pages that are free. Each time an emulated machine is woken up for it. So it does not look,
#: and CPUs hold back a thousandth of the memory at most, where by itself it can be an eighth: what is freed is told of.
QUIET = (
    Sysctl(b"vm/compaction_proactiveness", b"0"),
    Sysctl(b"vm/percpu_pagelist_high_fraction", b"1024"),
    Sysctl(b"vm/stat_interval", b"60"),
)

#: Index, metadata copies and redirects would tie the upper layer to the inodes of a lower one that may change
#: (DESIGN D2). Inode numbers of both layers in one range (xino) are worked out anew at each look and stored nowhere;
#: without them a file has another device number than the directory it is in.
OVERLAY_OPTIONS = b"index=off,metacopy=off,redirect_dir=off,xino=on"

#: Where the guest's root sees all of the shares' server for a moment. What it shows was all shared with the guest.
ASIDE = b"/run/cloche-shares"

_USER_PATH = b"/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
#: The PATH of a program that runs as root.
ROOT_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: Variables of the caller that say how a person wants programs to speak, and nothing about the host.
#: The LC_ variables are named one by one: some systems carry passwords in one of their own (LC_PVE_TICKET), because
#: remote shells let that prefix through.
_PASSED_ON = (
    b"TERM",
    b"COLORTERM",
    b"LANG",
    b"LANGUAGE",
    b"LC_ALL",
    b"LC_ADDRESS",
    b"LC_COLLATE",
    b"LC_CTYPE",
    b"LC_IDENTIFICATION",
    b"LC_MEASUREMENT",
    b"LC_MESSAGES",
    b"LC_MONETARY",
    b"LC_NAME",
    b"LC_NUMERIC",
    b"LC_PAPER",
    b"LC_TELEPHONE",
    b"LC_TIME",
    b"TZ",
    b"NO_COLOR",
    b"CLICOLOR",
    b"LS_COLORS",
    b"EDITOR",
    b"VISUAL",
    b"PAGER",
    b"LESS",
)

#: What is to be done in any guest that was saved while it ran: the time has gone on, and what it would draw next as
#: random may have been drawn before.
FRESH: tuple[Step, ...] = (Clock(), Entropy())

#: Where a program can see that its guest has been restored: a file with other digits after each time.
GENERATION = b"/run/cloche/generation"


def build_identity_steps(machine_id: bytes, generation: bytes, *, go_on: bool) -> tuple[Step, ...]:
    """Return the steps that make a guest another one than that which was saved.

    Args:
        machine_id: 32 fresh hexadecimal digits.
        generation: Likewise.
        go_on: Whether its programs go on after the last of them.
    """
    return (
        WriteFile(b"/etc/machine-id", 0o444, 0, 0, machine_id + b"\n"),
        Mkdir(GENERATION.rpartition(b"/")[0]),
        WriteFile(GENERATION, 0o444, 0, 0, generation + b"\n"),
        *((Thaw(),) if go_on else ()),
    )


#: Directories the stage brings along: their mode is not to be touched.
_PRESENT = frozenset(("/", "/etc", *SYSTEM_TREES, *(path for path, _ in EMPTY_DIRECTORIES)))


def build_machine_steps(
    request: RunRequest,
    user: User,
    person: User,
    skeleton: tuple[SkeletonEntry, ...] | None,
    *,
    hostname: str,
    loopback: bool,
    entropy: bool,
    restored: bool = False,
    devices: tuple[bytes, ...] = (),
    links: tuple[tuple[bytes, bytes], ...] = (),
    has_places: bool = False,
) -> tuple[Step, ...]:
    """Return the SETUP steps of a virtual machine: mounts, writable layer, home, name, disks, then shares and copies.

    Args:
        request: Whose shares and includes.
        user: Whose home the guest has.
        person: Whom the program runs as, and so whom the copies belong to.
        skeleton: What the home begins with, if it is to be sent along.
        hostname: The guest's name.
        loopback: Whether the loopback device has to be brought up; a kernel may do that by itself.
        entropy: Whether the kernel has to be given randomness; a CPU may have done that by itself.
        restored: Whether it goes on from a template, in which ``build_first_steps`` were done.
        devices: Those that were added after the boot, to be bound in this order.
        links: What the host has in /run that programs are found by, as target and path.
        has_places: Whether the places of a layer's mounts are there already (``plan.layers.build_place_steps``).
    """
    # Time and randomness come first: nothing is made with those of a template, and the clock loses no time by the rest.
    steps: list[Step] = [Clock()]
    if entropy:
        steps.append(Entropy())
    steps += [BindDevice(name) for name in devices]
    if request.root is not None:
        from cloche.plan.roots import build_own_steps

        steps += build_first_steps(user, None, hostname=hostname, devices=request.devices, request=request)
        steps += build_own_steps(request, user, hostname)
    elif not restored:
        steps += build_first_steps(user, skeleton, hostname=hostname, devices=request.devices)
    if request.root is None:
        steps += [MakeSymlink(target, path) for target, path in links]
    if request.disks:
        from cloche.plan.disks import build_disk_steps

        # A layer's disk, too: programs that look after a profile find it by its tag.
        steps += build_disk_steps(request.disks)
    if request.layer is not None:
        from cloche.plan.layers import build_layer_steps

        # What follows is done in the root that stays.
        steps += build_layer_steps(user, request.devices, has_places=has_places)
    shows = bool(request.shares or request.includes)
    if shows:
        if not restored:
            steps.append(Mkdir(ASIDE, 0o700))
        steps.append(mount_tree(SHARES_TAG, ASIDE, MS_NOSUID | MS_NODEV, devices=request.devices))
        # The copies come first: none of them may land in a share.
        steps += build_copy_steps(request.includes, user, person, source=ASIDE + b"/i%d")
    if request.shares or request.mounts:
        from cloche.plan.mounts import build_place_steps

        steps += build_place_steps(request, user, person, ASIDE + b"/%d")
    if shows:
        steps.append(Unmount(ASIDE, MNT_DETACH | UMOUNT_NOFOLLOW))
    if loopback:
        steps.append(Loopback())
    if request.network is not None:
        from cloche.plan.networks import build_network_steps

        steps += build_network_steps(request.network)
    return tuple(steps)


def build_first_steps(
    user: User,
    skeleton: tuple[SkeletonEntry, ...] | None,
    *,
    hostname: str,
    devices: str,
    request: RunRequest | None = None,
) -> tuple[Step, ...]:
    """Return the steps that all machines of a user have in common: system tree, the layer over it, home, name.

    Nothing is looked up in the system tree but the directories that the stage itself makes, so a template in which
    these steps were done remembers nothing of the host's.

    Args:
        user: Whose home the guest has.
        skeleton: What the home begins with, if it is to be sent along.
        hostname: The guest's name.
        devices: How the machine's devices are arranged.
        request: Of a machine with a system tree of its own.
    """
    # Put together aside, and then made the root: what is there first is a file system of the kernel's.
    base, root = b"/cloche", b"/cloche/root"
    layer = base + b"/layer"
    upper = layer + b"/upper"
    own = [*build_home_steps(user, skeleton, home=upper, system=SYSTEM_PLACE)]
    system: tuple[Step, ...] = (mount_tree(SYSTEM_TAG, SYSTEM_PLACE, MS_RDONLY, devices=devices),)
    flags = 0
    if request is None or request.root is None:
        # Nearly every program makes its files there; the stage's own, which is empty, would be copied up first.
        own.append(Mkdir(upper + b"/tmp", 0o1777))
    else:
        flags = MS_NODEV
        if request.root.kind == RootKind.IMAGE:
            from cloche.plan.roots import build_image_steps

            system = build_image_steps(request, SYSTEM_PLACE)
    return (
        *QUIET,
        Mkdir(SYSTEM_PLACE),
        Mkdir(layer),
        Mkdir(root),
        *system,
        Mount(b"tmpfs", b"layer", layer, 0, b"mode=0755,size=80%"),
        Mkdir(upper),
        Mkdir(layer + b"/work"),
        # Made in the writable layer itself, before it lies over the system tree: nothing has to be copied up for it.
        *own,
        Mount(
            b"overlay",
            b"cloche",
            root,
            flags,
            b"lowerdir=/cloche/system,upperdir=/cloche/layer/upper,workdir=/cloche/layer/work,"
            + OVERLAY_OPTIONS,
        ),
        SwitchRoot(root),
        Hostname(hostname.encode()),
    )


def build_ready_steps(user: User) -> tuple[Step, ...]:
    """Return what a template has done after ``build_first_steps``, and no run need do: a place, a look at the home.

    A directory that exists is only looked up, and the layers' way to it is known to all clones from then on.
    """
    return (Mkdir(ASIDE, 0o700), Mkdir(encode(user.home), 0o700, user.uid, user.gid))


def mount_tree(tag: bytes, target: bytes, flags: int, *, devices: str) -> Mount:
    """Return the step that mounts a tree of the host's, given how the machine's devices are arranged."""
    if devices != Devices.VMM:
        return Mount(b"virtiofs", tag, target, flags)
    # 9p has no cache that changes on the host end: either all is believed or nothing is kept.
    cache = b"loose" if flags & MS_RDONLY else b"none"
    return Mount(b"9p", tag, target, flags, b"trans=virtio,version=9p2000.L,msize=512000,cache=" + cache)


def build_copy_steps(includes: tuple[Include, ...], user: User, person: User, *, source: bytes) -> list[Step]:
    """Return the steps that copy what was included.

    Args:
        includes: What is to be copied.
        user: Whose home the guest has.
        person: Whom the copies belong to.
        source: Where the k-th is found, ``%d`` standing for k: a directory that holds it under its name in the guest.
    """
    steps: list[Step] = []
    for index, include in enumerate(includes):
        directory = include.target.rpartition("/")[0] or "/"
        steps += make_directory(directory, user)
        steps.append(CopyTree(source % index, encode(directory), person.uid, person.gid))
    return steps


def build_home_steps(
    user: User, skeleton: tuple[SkeletonEntry, ...] | None, *, home: bytes, system: bytes
) -> tuple[Step, ...]:
    """Return the steps that make a fresh home below ``home``.

    What the home begins with is sent along: through the file server it would take a dozen round trips. Only where it
    is not known (None) it is copied from the /etc/skel below ``system``.
    """
    place = home + encode(user.home)
    steps: list[Step] = [Mkdir(place, 0o700, user.uid, user.gid)]
    if skeleton is None:
        return (*steps, CopyTree(system + b"/etc/skel", place, user.uid, user.gid))
    for entry in skeleton:
        path = place + b"/" + entry.path
        if entry.kind == "dir":
            steps.append(Mkdir(path, entry.mode, user.uid, user.gid))
        elif entry.kind == "file":
            steps.append(WriteFile(path, entry.mode, user.uid, user.gid, entry.content))
        else:
            steps.append(MakeSymlink(entry.content, path))
    return tuple(steps)


def make_directory(path: str, user: User) -> list[Step]:
    """Return the steps that make a directory: below the home it is the user's with all above it, else root's."""
    if path in _PRESENT or contains(path, user.home):
        return []
    if not contains(user.home, path):
        return [Mkdir(encode(path))]
    steps: list[Step] = []
    for part in path[len(user.home) :].strip("/").split("/"):
        before = steps[-1].path if steps and isinstance(steps[-1], Mkdir) else encode(user.home)
        steps.append(Mkdir(before + b"/" + encode(part), 0o755, user.uid, user.gid))
    return steps


def encode(path: str) -> bytes:
    """Return a path as the guest gets it."""
    return path.encode("utf-8", "surrogateescape")


def shown_trees(request: RunRequest) -> tuple[str, ...]:
    """Return the trees of the host that the guest sees at the same place."""
    shared = (share.target for share in request.shares if share.target == share.source)
    return tuple(shared) if request.root is not None else (*SYSTEM_TREES, *shared)


def resolve_user(request: RunRequest, user: User) -> User:
    """Return whom the program runs as: the caller, root, or a number.

    Raises:
        UsageError: A name the guest does not know (it knows root, nobody and the caller), or contradictory options.
    """
    root = user._replace(
        name="root", uid=0, gid=0, group="root", home="/root", shell="/bin/bash", gecos="root"
    )
    wanted, number = request.user, _user_number(request.user)
    if request.privileged and not (wanted in (None, "root") or number == 0):
        raise UsageError("--privileged and --user contradict each other", hint="Give one of them.")
    if request.privileged or wanted == "root" or number == 0:
        return root
    if wanted is None or wanted == user.name or number == user.uid:
        return user
    if wanted == "nobody" or number == 65534:
        return user._replace(
            name="nobody", uid=65534, gid=65534, group="nogroup", home="/", shell="/bin/sh", gecos=""
        )
    if number is not None:
        return user._replace(name=wanted, uid=number, gid=number, group=wanted, home="/", gecos="")
    known = ", ".join(dict.fromkeys(("root", user.name, "nobody")))
    raise UsageError(
        f"the guest knows no user {wanted!r}", hint=f"It knows {known}; a number is taken as it is."
    )


def _user_number(word: str | None) -> int | None:
    """Return the number that ``word`` is; None when it is no user's (the highest one means "nobody changes")."""
    if word is None or not (word.isascii() and word.isdigit() and len(word) <= 10):
        return None
    return int(word) if int(word) < 2**32 - 1 else None


def build_environment(
    request: RunRequest, facts: HostFacts, person: User, shown: tuple[str, ...]
) -> tuple[bytes, ...]:
    """Return the program's environment as ``NAME=value``.

    Nothing of the host's environment is taken but language, time zone, terminal and a person's tools; the directories
    of the caller's PATH that exist in the guest are kept in their order.

    Raises:
        UsageError: A name or a value that no environment can hold.
    """
    host = facts.environment
    env = {name: host[name] for name in _PASSED_ON if name in host}
    env[b"HOME"] = encode(person.home)
    env[b"USER"] = env[b"LOGNAME"] = encode(person.name)
    env[b"SHELL"] = encode(person.shell if request.root is None else request.root.shell)
    env[b"PATH"] = guest_path(host.get(b"PATH", b""), person, shown)
    env.setdefault(b"TERM", b"dumb")
    env.update(request.env)
    for name, value in env.items():
        if not name or b"=" in name or b"\0" in name:
            raise UsageError(
                f"{name!r} cannot be the name of an environment variable", hint="Write NAME=VALUE."
            )
        if b"\0" in value:
            raise UsageError(f"the value of {name!r} holds a NUL byte, which no environment can")
    return tuple(name + b"=" + value for name, value in env.items())


def guest_path(caller_path: bytes, person: User, shown: tuple[str, ...]) -> bytes:
    """Return the PATH of the guest: the caller's directories that the guest has, then the usual ones."""
    usual = (ROOT_PATH if person.uid == 0 else _USER_PATH).split(b":")
    roots = tuple(encode(path) for path in shown)
    kept = [
        part for part in caller_path.split(b":") if is_below(part, roots) and b".." not in part.split(b"/")
    ]
    ordered: dict[bytes, None] = dict.fromkeys(kept + usual)
    return b":".join(ordered)


def is_below(path: bytes, roots: tuple[bytes, ...]) -> bool:
    """Tell whether an absolute path is one of ``roots`` or inside one."""
    return path.startswith(b"/") and any(
        path == root or path.startswith(root.rstrip(b"/") + b"/") for root in roots
    )


def build_command(
    request: RunRequest, facts: HostFacts, person: User, shown: tuple[str, ...]
) -> GuestCommand:
    """Return the program with everything it inherits.

    ``shown`` are the trees of the host that the guest sees at the same place.

    Raises:
        UsageError: What no program can be given.
    """
    for word in request.argv:
        if b"\0" in word:
            raise UsageError("an argument holds a NUL byte, which no program can be given")
    cwd = _starting_place(request, facts.cwd, person, shown)
    if request.workdir is not None:
        if not request.workdir or "\0" in request.workdir:
            raise UsageError(f"--workdir {request.workdir!r} names no directory", hint="Write --workdir DIR.")
        cwd = request.workdir if request.workdir.startswith("/") else f"{cwd.rstrip('/')}/{request.workdir}"
    return GuestCommand(
        argv=request.argv,
        env=build_environment(request, facts, person, shown),
        cwd=encode(cwd),
        uid=person.uid,
        gid=person.gid,
        groups=(person.gid,),
        umask=facts.umask,
        pids_max=request.pids or 0,
        strace=request.strace,
        ignored=facts.ignored,
        # A higher priority than the usual one is the host's to give, and was: the machine runs with it.
        nice=max(facts.nice, 0),
    )


def _starting_place(request: RunRequest, here: str, person: User, shown: tuple[str, ...]) -> str:
    """Return where the program starts: the caller's directory if the guest has it, maybe elsewhere, else the home."""
    if is_below(encode(here), tuple(encode(path) for path in shown)):
        return here
    # The innermost share wins.
    for share in sorted(request.shares, key=lambda share: len(share.source), reverse=True):
        if contains(share.source, here):
            return share.target.rstrip("/") + here[len(share.source) :]
    return person.home
