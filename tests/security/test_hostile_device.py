"""Device processes that have been taken over, in their real jails, after their filter is on.

What they try is in crates/device/src/hostile.rs.
Most attacks are stopped by more than one part of a jail. Each part is tried alone: with only that one in place the
attack must fail, and with none of them it must succeed.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest

from cloche.drivers.qemu.jails import device_jail
from cloche.drivers.registry import find_driver
from cloche.host.facts import collect_facts
from cloche.host.images import resolve_disk
from cloche.host.landlock import landlock_version
from cloche.host.warden import Exited, Failed, Spawned, Warden
from cloche.model.jail import AS_IS, Bind, BindFlag, Jail, JailFlag, Namespace, SpawnSpec
from cloche.model.machine import Devices
from cloche.model.request import Network
from support.disks import empty_qcow2
from support.plans import KERNEL, request, share
from support.wardens import (
    ROLES,
    Role,
    domain,
    make_role,
    next_events,
    outcome,
    own_ids,
    shell,
    small_jail,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.users import OrdinaryUser

#: Each kind of device process, and its program.
KINDS = {
    "system": "cloche-fs",
    "shares": "cloche-fs",
    "rng": "cloche-rng",
    "disk": "cloche-disk",
    "disk-qcow2": "cloche-disk",
    "net": "cloche-net",
    "vsock": "cloche-vsock",
    "bundle": "cloche-bundle",
}
#: The device of a bundle that is taken over: a file server, as which it may do most.
BUNDLED = "fs"
#: The kinds of disks, and how their bytes are kept.
FORMATS = {"disk": "raw", "disk-qcow2": "qcow2"}
#: The number of the image in a disk's process, and the bytes of the disk.
IMAGE_FD, DISK = 4, 1 << 20
#: The version of the kernel's Landlock, 0 for none, and the one since which it stops an attack.
LANDLOCK = landlock_version()
LANDLOCK_SINCE = {
    **dict.fromkeys(("open", "write", "exec", "mount", "ptrace"), 1),
    "connect": 4,
    **dict.fromkeys(("connect-unix", "signal"), 6),
}
#: How an attack ends that the kernel refused (crates/device/src/hostile.rs).
REFUSED = 10
CAP_NET_RAW, CAP_SYS_ADMIN = 13, 21


class Attack(NamedTuple):
    """What is tried.

    Attributes:
        parts: The parts of the jail each of which stops it; those in brackets only in the programs named.
        caps: The capabilities that removing the part ``caps`` leaves.
        won: The exit status of the process when it got what it wanted.
    """

    parts: tuple[str, ...]
    caps: int = 0
    won: int = 0


ATTACKS = {
    # Opening files is a file server's work: that it cannot name the host's is its root's doing.
    **{
        (kind, name): attack
        for kind in ("rng", "net", "vsock", *FORMATS)
        for name, attack in {
            "open": Attack(("filters", "root", "landlock")),
            "write": Attack(("filters", "read-only", "landlock")),
            # Executed again these say that they miss their options.
            "exec": Attack(("filters", "root", "landlock"), won=2 if kind in {"net", "vsock"} else 0),
        }.items()
    },
    **{
        (kind, name): attack
        for kind in FORMATS
        for name, attack in {
            "grow": Attack(("size",)),
            # No limit counts blocks past a file's end.
            "allocate": Attack(("filters",)),
        }.items()
    },
    **{
        (server, name): attack
        for server in ("system", "shares", "bundle")
        for name, attack in {
            "open": Attack(("root", "landlock")),
            "write": Attack(("read-only", "landlock")),
            # Executed again it says that it misses its options.
            "exec": Attack(("filters", "landlock"), won=2),
        }.items()
    },
    **{
        (kind, name): attack
        for kind in KINDS
        for name, attack in {
            "connect": Attack(("filters", "net", "landlock")),
            "connect-unix": Attack(("filters", "net", "landlock")),
            "raw-socket": Attack(("filters", "caps"), 1 << CAP_NET_RAW),
            "signal": Attack(("filters", "pid", "landlock")),
            "ptrace": Attack(("filters", "pid", "landlock")),
            "mount": Attack(("filters", "caps", "landlock"), 1 << CAP_SYS_ADMIN),
            "fork": Attack(("filters",)),
            "unshare": Attack(("filters",)),
            "code": Attack(("filters",)),
            "io-uring": Attack(("filters",)),
            "userfaultfd": Attack(("filters",)),
        }.items()
        # The kernel gives no process with several threads a user namespace.
        if (kind, name) != ("bundle", "unshare")
    },
}
#: Calls that kernels have had many holes in. In a domain the kernel may refuse them anyway; to root they are open.
GUARDED = ("keyctl", "bpf", "perf", "handle")


@pytest.fixture(params=ROLES)
def role(request: pytest.FixtureRequest, ordinary: OrdinaryUser) -> Role:
    """Provide root and an ordinary user, one after the other."""
    return make_role(request.param, ordinary)


def real_jail(kind: str, shared: Path) -> Jail:
    """Return the jail in which a device process runs for whoever this is.

    ``shared`` is what is shared; a disk's image is made there.
    """
    facts = collect_facts()
    if kind == "rng":
        return device_jail(facts, KINDS[kind])
    if kind == "vsock":
        plan = find_driver("qemu").plan(request(vsock=str(shared / "vsock")), facts, KERNEL)
        return next(process.jail for process in plan.processes if process.name == kind)
    if kind in FORMATS:
        image_in(shared).write_bytes(empty_qcow2(DISK) if FORMATS[kind] == "qcow2" else bytes(DISK))
        disk = resolve_disk(f"home={image_in(shared)},format={FORMATS[kind]}")
        plan = find_driver("qemu").plan(request(disks=(disk,)), facts, KERNEL)
        return next(process.jail for process in plan.processes if process.name == "disk-home")
    if kind == "net":
        network = Network("/nowhere", "02:00:00:00:00:01")
        plan = find_driver("qemu").plan(request(network=network), facts, KERNEL)
        return next(process.jail for process in plan.processes if process.name == "net")
    asked = request(shares=(share(str(shared), writable=True),))
    if kind == "bundle":
        asked = asked._replace(devices=Devices.BUNDLED)
    plan = find_driver("qemu").plan(asked, facts, KERNEL)
    name = "devices" if kind == "bundle" else f"fs-{kind}"
    return next(process.jail for process in plan.processes if process.name == name)


def image_in(shared: Path) -> Path:
    """Return where a disk's image is."""
    return shared / "disk.img"


def without(jail: Jail, part: str, caps: int) -> Jail:
    """Return the jail without one of its parts."""
    if part == "filters":
        return jail._replace(seccomp=b"")
    if part == "landlock":
        return jail  # the device puts it on itself
    if part == "ids":
        return jail._replace(uid=AS_IS, gid=AS_IS)
    if part == "root":
        return jail._replace(root=(), flags=jail.flags | JailFlag.KEEP_ROOT)
    if part == "read-only":
        return jail._replace(flags=jail.flags | JailFlag.ROOT_WRITABLE)
    if part == "size":
        return jail._replace(rlimits=tuple(one for one in jail.rlimits if one[0] != resource.RLIMIT_FSIZE))
    if part == "caps":
        return jail._replace(keep_caps=caps)
    namespace = {"net": Namespace.NET, "pid": Namespace.PID}[part]
    return jail._replace(namespaces=jail.namespaces & ~namespace)


class Victim(NamedTuple):
    """A device process to be: its kind, where the hostile programs are, and what is shared, or holds its image."""

    kind: str
    programs: Path
    shared: Path


def sockets_of_a_guest() -> list[int]:
    """Return what the process of a guest's sockets has: a socket that listens, and one where nobody answers."""
    door = socket.socket(socket.AF_UNIX)
    # The kernel gives it an abstract name.
    door.bind("")
    door.listen()
    ours, theirs = socket.socketpair()
    ours.close()
    return [door.detach(), theirs.detach()]


#: How a device is told to leave out what it puts on itself.
LEFT_OUT = {"filters": "--bare", "landlock": "--no-landlock"}


def launch(
    warden: Warden,
    victim: Victim,
    jail: Jail,
    attack: str,
    target: str,
    *without: str,
    device: str = BUNDLED,
) -> int:
    """Start a device process with an attack, ``without`` some of what it puts on itself.

    In a bundle it is ``device`` that attacks. Returns its status, or minus the signal that killed it.
    """
    words = ["--attack", attack, "--target", target, *(LEFT_OUT[part] for part in without)]
    path = victim.programs / KINDS[victim.kind]
    image: list[int] = []
    if victim.kind == "vsock":
        image = sockets_of_a_guest()
        words += ["--cid", "3", "--listen-fd", str(IMAGE_FD), "--ask-fd", str(IMAGE_FD + 1)]
    elif victim.kind in FORMATS or device == "disk":
        image = [os.open(image_in(victim.shared), os.O_RDWR | os.O_CLOEXEC)]
        words += ["--image-fd", str(IMAGE_FD), "--format", FORMATS.get(victim.kind, "raw")]
    elif victim.kind == "net":
        words += ["--mac", "02:00:00:00:00:01"]
    elif path.name in {"cloche-fs", "cloche-bundle"}:
        words += ["--root", "/stage" if jail.root else "/usr", "--cache", "forever", "--ids", "host"]
    first = [b"--device", device.encode()] if path.name == "cloche-bundle" else []
    spec = SpawnSpec(
        id=1,
        name=b"device",
        argv=(path.name.encode(), *first, b"--fd", b"3", *(word.encode() for word in words)),
        env=(),
        jail=own_ids(jail, warden),
        fds=(2, 3, *(IMAGE_FD + index for index in range(len(image)))),
        exe_fd=True,
    )
    ours, theirs = socket.socketpair()
    program = os.open(path, os.O_PATH | os.O_CLOEXEC)
    with ours, theirs, open(os.devnull, "wb") as null:
        ended = outcome(warden, spec, (null.fileno(), theirs.fileno(), *image, program))
    for fd in (program, *image):
        os.close(fd)
    assert isinstance(ended, Exited), ended
    return -ended.signal if ended.signal else ended.status


@contextmanager
def target_of(attack: str, victim: Victim, role: Role, warden: Warden) -> Iterator[str]:
    """Provide what an attack is aimed at, so that it could succeed."""
    if attack == "open":
        with role.directory() as directory:
            (directory / "secret").write_text("secret")
            yield str(directory / "secret")
    elif attack == "write":
        yield "/new"
    elif attack == "exec":
        yield "/usr/bin/true" if victim.kind in {"rng", *FORMATS} else "/proc/self/exe"
    elif attack in {"grow", "allocate"}:
        # The first byte that is too much.
        disk = resolve_disk(f"home={image_in(victim.shared)},format={FORMATS[victim.kind]}")
        yield f"{IMAGE_FD}:{disk.most_bytes}"
    elif attack in {"connect", "connect-unix"}:
        family = socket.AF_INET if attack == "connect" else socket.AF_UNIX
        with socket.socket(family) as listener:
            listener.bind(("127.0.0.1", 0) if attack == "connect" else f"\0cloche-{os.getpid()}")
            listener.listen()
            name = listener.getsockname()
            yield str(name[1]) if attack == "connect" else name[1:].decode()
    elif attack in {"signal", "ptrace"}:
        pid = 0
        # Several: the number of the last is none that a thread of a bundle has in its own namespace.
        for ident in range(2, 6):
            warden.send_spawn(shell("read never", small_jail(), ident=ident, fds=(0,)), (never_ready(),))
            event = next_events(warden)[0]
            assert isinstance(event, Spawned)
            os.close(event.pidfd)
            pid = event.pid
        yield str(pid)  # it ends with the domain
    else:
        yield ""


def never_ready() -> int:
    """Return a descriptor from which nothing ever comes; it lives as long as this process."""
    reader, _ = os.pipe()
    return reader


@pytest.mark.parametrize("kind, attack", ATTACKS, ids=["-".join(key) for key in ATTACKS])
def test_what_stops_a_device(role: Role, hostile: Path, kind: str, attack: str) -> None:
    """The real jail stops the attack, so does each part of it alone, and without them all it succeeds."""

    @role.run
    def _() -> None:
        parts, caps, won = ATTACKS[kind, attack]
        if LANDLOCK_SINCE.get(attack, 0) > LANDLOCK:
            parts = tuple(part for part in parts if part != "landlock")

        def attempt(kept: frozenset[str]) -> int:
            with domain(role.warden) as warden, role.directory() as shared:
                jail = real_jail(kind, shared)
                # The ids of a device of root's are tried by themselves below.
                for part in (*parts, "ids"):
                    if part not in kept:
                        jail = without(jail, part, caps)
                victim = Victim(kind, hostile, shared)
                with target_of(attack, victim, role, warden) as target:
                    return launch(warden, victim, jail, attack, target, *(LEFT_OUT.keys() - kept))

        # In the real jail everything is in place, whether it is there for this attack or not.
        assert attempt(frozenset({*parts, *LEFT_OUT, "ids"})) in {REFUSED, -signal.SIGSYS}
        for part in parts:
            expected = -signal.SIGSYS if part == "filters" else REFUSED
            assert attempt(frozenset({part})) == expected, part
        if "filters" not in parts:
            assert attempt(frozenset({"filters"})) == won
        assert attempt(frozenset()) == won


@pytest.mark.parametrize("attack", GUARDED)
@pytest.mark.parametrize("kind", KINDS)
def test_calls_that_never_reach_the_kernel(role: Role, hostile: Path, kind: str, attack: str) -> None:
    """Calls that kernels have had many holes in are killed by the filters, and without them the kernel answers."""

    @role.run
    def _() -> None:
        with domain(role.warden) as warden, role.directory() as shared:
            jail, victim = real_jail(kind, shared), Victim(kind, hostile, shared)
            assert launch(warden, victim, jail, attack, "") == -signal.SIGSYS
            open_jail = without(jail, "filters", 0)
            assert launch(warden, victim, open_jail, attack, "", "filters") in {0, REFUSED}


def run_unjailed(victim: Victim, attack: str, target: str, *without: str) -> int:
    """Run an attack in a device program that nothing holds but what it puts on itself; return as ``launch`` does."""
    path = victim.programs / KINDS[victim.kind]
    ours, theirs = socket.socketpair()
    words = ["--attack", attack, "--target", target, *(LEFT_OUT[part] for part in without)]
    files: list[int] = []
    if victim.kind == "vsock":
        files = sockets_of_a_guest()
        words += ["--cid", "3", "--listen-fd", str(files[0]), "--ask-fd", str(files[1])]
    elif victim.kind in FORMATS:
        image_in(victim.shared).write_bytes(
            empty_qcow2(DISK) if FORMATS[victim.kind] == "qcow2" else bytes(DISK)
        )
        files = [os.open(image_in(victim.shared), os.O_RDWR | os.O_CLOEXEC)]
        words += ["--image-fd", str(files[0]), "--format", FORMATS.get(victim.kind, "raw")]
    elif victim.kind == "net":
        words += ["--mac", "02:00:00:00:00:01"]
    elif path.name in {"cloche-fs", "cloche-bundle"}:
        words += ["--root", "/usr", "--cache", "forever", "--ids", "host"]
    first = ["--device", BUNDLED] if path.name == "cloche-bundle" else []
    with ours, theirs:
        done = subprocess.run(
            [path, *first, "--fd", str(theirs.fileno()), *words],
            pass_fds=(theirs.fileno(), *files),
            stderr=subprocess.DEVNULL,
            check=False,
        )
    for file in files:
        os.close(file)
    return done.returncode


@pytest.mark.parametrize("attack", GUARDED)
@pytest.mark.parametrize("kind", KINDS)
def test_the_filter_alone_keeps_such_calls_away(role: Role, hostile: Path, kind: str, attack: str) -> None:
    """Outside of any jail root's calls succeed, and an ordinary user's where they are open to one; the filter kills."""

    @role.run
    def _() -> None:
        with role.directory() as shared:
            victim = Victim(kind, hostile, shared)
            assert run_unjailed(victim, attack, "", "landlock") == -signal.SIGSYS
            status = run_unjailed(victim, attack, "", "landlock", "filters")
            # Of an ordinary user's, only the key ring is asked for something that every kernel gives.
            assert status == 0 or (os.geteuid() != 0 and attack != "keyctl"), status


@pytest.mark.parametrize("kind", ["rng", "disk", "disk-qcow2", "system"])
@pytest.mark.skipif("root" not in ROLES, reason="only root's domains have ids of their own")
def test_files_of_roots_are_not_a_devices(hostile: Path, ordinary: OrdinaryUser, kind: str) -> None:
    """What only root may write a device of root's may not, even where its jail shows it; under root's id it may."""
    role = make_role("root", ordinary)

    @role.run
    def _() -> None:
        def attempt(*kept: str) -> int:
            with domain(role.warden) as warden, role.directory() as shared:
                secret = shared / "secret"
                secret.write_text("secret")
                secret.chmod(0o600)
                jail = real_jail(kind, shared)
                shown = Bind(os.fsencode(secret), b"/secret", BindFlag.NOSUID | BindFlag.NODEV)
                jail = jail._replace(root=(*jail.root, shown))
                for part in {"filters", "ids"} - {*kept}:
                    jail = without(jail, part, 0)
                victim = Victim(kind, hostile, shared)
                return launch(warden, victim, jail, "rewrite", "/secret", *(LEFT_OUT.keys() - {*kept}))

        assert attempt("filters", "landlock", "ids") in {REFUSED, -signal.SIGSYS}
        assert attempt("ids") == REFUSED
        assert attempt() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_either_filter_alone_stops_an_attack(role: Role, hostile: Path, kind: str) -> None:
    """Only the inner filter stops an exec, and both stop what neither the start nor the work needs."""

    @role.run
    def _() -> None:
        with domain(role.warden) as warden, role.directory() as shared:
            jail, victim = real_jail(kind, shared), Victim(kind, hostile, shared)
            no_outer = without(jail, "filters", 0)
            for attack in ("fork", "code"):
                assert launch(warden, victim, jail, attack, "", "filters") == -signal.SIGSYS
                assert launch(warden, victim, no_outer, attack, "") == -signal.SIGSYS
            # The attack that is none: the build, its jail and its filters work.
            assert launch(warden, victim, jail, "nothing", "") == 0


def test_devices_that_are_not_apart_reach_what_others_have(role: Role, hostile: Path) -> None:
    """A disk that was taken over reads what is shared where it is in a bundle, and nothing where it is apart."""

    @role.run
    def _() -> None:
        with domain(role.warden) as warden, role.directory() as shared:
            (shared / "secret").write_text("secret")
            apart = real_jail("disk", shared)
            for target in ("/stage/0/secret", "/stage/shares/0/secret"):
                ended = launch(warden, Victim("disk", hostile, shared), apart, "open", target)
                assert ended == -signal.SIGSYS
            together, victim = real_jail("bundle", shared), Victim("bundle", hostile, shared)
            target = "/stage/shares/0/secret"
            assert launch(warden, victim, together, "open", target, "landlock", device="disk") == 0


def test_a_failed_start_is_told(role: Role, hostile: Path) -> None:
    """A program that cannot be executed under its filter is reported as such, not as a device that ended."""

    @role.run
    def _() -> None:
        jail = real_jail("rng", role.home)
        jail = without(jail, "ids", 0)
        spec = SpawnSpec(id=1, name=b"device", argv=(b"device",), env=(), jail=jail, exe_fd=True)
        program = os.open(hostile, os.O_PATH | os.O_CLOEXEC)  # a directory
        with domain(role.warden) as warden:
            failed = outcome(warden, spec, (program,))
        os.close(program)
        assert isinstance(failed, Failed)
        assert failed.what == "exec device"
