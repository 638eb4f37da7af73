"""Device processes that have been taken over, in their real jails, after their filter is on.

What they try is in crates/device/src/hostile.rs.
Most attacks are stopped by more than one part of a jail. Each part is tried alone: with only that one in place the
attack must fail, and with none of them it must succeed.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from cloche.drivers.qemu.jails import device_jail
from cloche.drivers.registry import find_driver
from cloche.host.facts import collect_facts
from cloche.host.paths import resolve_disk
from cloche.host.warden import Exited, Failed, Spawned, Warden
from cloche.model.jail import Jail, JailFlag, Namespace, SpawnSpec
from setuplib import cargo, rust
from support.disks import empty_qcow2
from support.plans import KERNEL, request, share
from support.wardens import ROLES, Role, domain, make_role, next_events, outcome, shell, small_jail

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.users import OrdinaryUser

PROGRAMS = ("cloche-fs", "cloche-rng", "cloche-disk")
#: Each kind of device process, and its program.
KINDS = {
    "system": "cloche-fs",
    "shares": "cloche-fs",
    "rng": "cloche-rng",
    "disk": "cloche-disk",
    "disk-qcow2": "cloche-disk",
}
#: The kinds of disks, and how their bytes are kept.
FORMATS = {"disk": "raw", "disk-qcow2": "qcow2"}
#: The number of the image in a disk's process, and the bytes of the disk.
IMAGE_FD, DISK = 4, 1 << 20
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
        for kind in ("rng", *FORMATS)
        for name, attack in {
            "open": Attack(("filters", "root")),
            "write": Attack(("filters", "read-only")),
            "exec": Attack(("filters", "root")),
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
        for server in ("system", "shares")
        for name, attack in {
            "open": Attack(("root",)),
            "write": Attack(("read-only",)),
            # Executed again it says that it misses its options.
            "exec": Attack(("filters",), won=2),
        }.items()
    },
    **{
        (kind, name): attack
        for kind in KINDS
        for name, attack in {
            "connect": Attack(("filters", "net")),
            "connect-unix": Attack(("filters", "net")),
            "raw-socket": Attack(("filters", "caps"), 1 << CAP_NET_RAW),
            "signal": Attack(("filters", "pid")),
            "ptrace": Attack(("filters", "pid")),
            "mount": Attack(("filters", "caps"), 1 << CAP_SYS_ADMIN),
            "fork": Attack(("filters",)),
            "unshare": Attack(("filters",)),
            "code": Attack(("filters",)),
            "io-uring": Attack(("filters",)),
            "userfaultfd": Attack(("filters",)),
        }.items()
    },
}
#: Calls that a kernel may refuse everybody like us, filter or not.
GUARDED = ("keyctl", "bpf", "perf", "handle")


@pytest.fixture(params=ROLES)
def role(request: pytest.FixtureRequest, ordinary: OrdinaryUser) -> Role:
    """Provide root and an ordinary user, one after the other."""
    return make_role(request.param, ordinary)


@pytest.fixture(scope="session")
def hostile() -> Iterator[Path]:
    """Provide a directory with hostile builds of the device programs, where every user can run them."""
    project = Path(__file__).resolve().parents[2]
    found = cargo.find()
    assert found is not None, "there is no cargo; `make setup` installs one"
    target = project / "target" / "mutants"
    packages = [word for program in PROGRAMS for word in ("--package", program)]
    features = ",".join(f"{program}/hostile" for program in PROGRAMS)
    subprocess.run(
        [
            *(found.path, "build", "--locked", "--quiet", *packages, "--target", rust.TARGET),
            *("--features", features, "--target-dir", str(target)),
        ],
        cwd=project,
        env={**os.environ, **cargo.environment(found), "RUSTFLAGS": rust.flags()},
        check=True,
    )
    copies = Path("/var/tmp", f"cloche-hostile.{os.getpid()}")
    copies.mkdir(mode=0o755)
    for program in PROGRAMS:
        shutil.copy(target / rust.TARGET / "debug" / program, copies / program)
    yield copies
    shutil.rmtree(copies)


def real_jail(kind: str, shared: Path) -> Jail:
    """Return the jail in which a device process runs for whoever this is.

    ``shared`` is what is shared; a disk's image is made there.
    """
    facts = collect_facts()
    if kind == "rng":
        return device_jail(facts, KINDS[kind])
    if kind in FORMATS:
        image_in(shared).write_bytes(empty_qcow2(DISK) if FORMATS[kind] == "qcow2" else bytes(DISK))
        disk = resolve_disk(f"home={image_in(shared)},format={FORMATS[kind]}")
        plan = find_driver("qemu").plan(request(disks=(disk,)), facts, KERNEL)
        return next(process.jail for process in plan.processes if process.name == "disk-home")
    asked = request(shares=(share(str(shared), writable=True),))
    plan = find_driver("qemu").plan(asked, facts, KERNEL)
    return next(process.jail for process in plan.processes if process.name == f"fs-{kind}")


def image_in(shared: Path) -> Path:
    """Return where a disk's image is."""
    return shared / "disk.img"


def without(jail: Jail, part: str, caps: int) -> Jail:
    """Return the jail without one of its parts."""
    if part == "filters":
        return jail._replace(seccomp=b"")
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


def launch(warden: Warden, victim: Victim, jail: Jail, attack: str, target: str, *, bare: bool) -> int:
    """Start a device process with an attack; return its status, or minus the signal that killed it."""
    words = ["--attack", attack, "--target", target, *(["--bare"] if bare else [])]
    path = victim.programs / KINDS[victim.kind]
    image = []
    if victim.kind in FORMATS:
        image = [os.open(image_in(victim.shared), os.O_RDWR | os.O_CLOEXEC)]
        words += ["--image-fd", str(IMAGE_FD), "--format", FORMATS[victim.kind]]
    elif path.name == "cloche-fs":
        words += ["--root", "/stage" if jail.root else "/usr", "--cache", "forever", "--ids", "host"]
    spec = SpawnSpec(
        id=1,
        name=b"device",
        argv=(path.name.encode(), b"--fd", b"3", *(word.encode() for word in words)),
        env=(),
        jail=jail,
        fds=(2, 3, *([IMAGE_FD] if image else [])),
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
        yield "/proc/self/exe" if KINDS[victim.kind] == "cloche-fs" else "/usr/bin/true"
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
        warden.send_spawn(shell("read never", small_jail(), ident=2, fds=(0,)), (never_ready(),))
        event = next_events(warden)[0]
        assert isinstance(event, Spawned)
        os.close(event.pidfd)
        yield str(event.pid)  # it ends with the domain
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

        def attempt(kept: frozenset[str]) -> int:
            with domain(role.warden) as warden, role.directory() as shared:
                jail = real_jail(kind, shared)
                for part in parts:
                    if part not in kept:
                        jail = without(jail, part, caps)
                victim = Victim(kind, hostile, shared)
                with target_of(attack, victim, role, warden) as target:
                    return launch(warden, victim, jail, attack, target, bare="filters" not in kept)

        # In the real jail everything is in place, whether it is there for this attack or not.
        assert attempt(frozenset({*parts, "filters"})) in {REFUSED, -signal.SIGSYS}
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
            assert launch(warden, victim, jail, attack, "", bare=False) == -signal.SIGSYS
            open_jail = without(jail, "filters", 0)
            assert launch(warden, victim, open_jail, attack, "", bare=True) in {0, REFUSED}


@pytest.mark.parametrize("kind", KINDS)
def test_either_filter_alone_stops_an_attack(role: Role, hostile: Path, kind: str) -> None:
    """Only the inner filter stops an exec, and both stop what neither the start nor the work needs."""

    @role.run
    def _() -> None:
        with domain(role.warden) as warden, role.directory() as shared:
            jail, victim = real_jail(kind, shared), Victim(kind, hostile, shared)
            no_outer = without(jail, "filters", 0)
            for attack in ("fork", "code"):
                assert launch(warden, victim, jail, attack, "", bare=True) == -signal.SIGSYS
                assert launch(warden, victim, no_outer, attack, "", bare=False) == -signal.SIGSYS
            # The attack that is none: the build, its jail and its filters work.
            assert launch(warden, victim, jail, "nothing", "", bare=False) == 0


def test_a_failed_start_is_told(role: Role, hostile: Path) -> None:
    """A program that cannot be executed under its filter is reported as such, not as a device that ended."""

    @role.run
    def _() -> None:
        jail = real_jail("rng", role.home)
        spec = SpawnSpec(id=1, name=b"device", argv=(b"device",), env=(), jail=jail, exe_fd=True)
        program = os.open(hostile, os.O_PATH | os.O_CLOEXEC)  # a directory
        with domain(role.warden) as warden:
            failed = outcome(warden, spec, (program,))
        os.close(program)
        assert isinstance(failed, Failed)
        assert failed.what == "exec device"
