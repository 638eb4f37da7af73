"""Running the warden in tests: as root and as an ordinary user, with a time limit on every wait."""

from __future__ import annotations

import importlib
import os
import pkgutil
import select
import sys
import tempfile
import traceback
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

import pytest

import cloche
from cloche.host import tools
from cloche.host.ids import find_ids
from cloche.host.warden import Event, Exited, Failed, Ready, Spawned, Warden
from cloche.model.jail import (
    OWN,
    Bind,
    BindFlag,
    Dev,
    Dir,
    Jail,
    Namespace,
    Proc,
    RootOp,
    SpawnSpec,
    Symlink,
)
from support import leaks

if TYPE_CHECKING:
    import pwd
    from collections.abc import Callable, Iterator, Sequence

    from support.users import OrdinaryUser

#: Until something that takes milliseconds counts as hanging, in seconds.
PATIENCE_S = 20.0

#: Who the tests run as: both where pytest is root's.
ROLES = ("root", "ordinary") if os.geteuid() == 0 else ("ordinary",)

ALONE = Namespace.MOUNT | Namespace.NET | Namespace.IPC | Namespace.UTS | Namespace.CGROUP
READ_ONLY = BindFlag.READ_ONLY | BindFlag.NOSUID | BindFlag.NODEV | BindFlag.RECURSIVE


class Role(NamedTuple):
    """Somebody to run a test as. ``entry`` is None for whoever runs pytest."""

    name: str
    entry: pwd.struct_passwd | None
    warden: str
    home: Path

    def run(self, body: Callable[[], None]) -> None:
        """Run ``body`` in a forked process as this user, and fail with its traceback if it raises.

        Usable as a decorator in a test: the function below it is run at once.
        """
        import_all()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            os._exit(self._run_in_child(body, writer))
        os.close(writer)
        with open(reader, "rb") as report:
            text = report.read().decode()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != 0:
            pytest.fail(f"as {self.name} (status {status}):\n{text}", pytrace=False)

    def _run_in_child(self, body: Callable[[], None], report: int) -> int:
        try:
            self.become()
            body()
        except BaseException:  # noqa: BLE001 - whatever it is, the parent shows it
            os.write(report, traceback.format_exc().encode()[:60000])
            return 1
        return 0

    def become(self) -> None:
        """Turn this process into one of the user's, for good.

        What cloche reads beside its own code is then read where this user can read it.
        """
        if self.entry is not None:
            built = str(Path(self.warden).parent)
            tools._OWN_PATH = (built, built)
            os.setgroups([])
            os.setresgid(self.entry.pw_gid, self.entry.pw_gid, self.entry.pw_gid)
            os.setresuid(self.entry.pw_uid, self.entry.pw_uid, self.entry.pw_uid)
        os.chdir("/")

    @contextmanager
    def directory(self) -> Iterator[Path]:
        """Provide an empty directory of the user's; for use inside ``run``."""
        with tempfile.TemporaryDirectory(dir=self.home) as name:
            yield Path(name)


@cache
def import_all() -> None:
    """Import all of cloche, for a process that may not be able to read this checkout later."""
    for module in pkgutil.walk_packages(cloche.__path__, "cloche."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def make_role(name: str, ordinary: OrdinaryUser) -> Role:
    """Return one of ROLES."""
    if name == "root":
        own = Path(__file__).resolve().parents[2]
        return Role(name, None, str(own / "build/bin/cloche-warden"), Path("/var/tmp"))
    other = ordinary.entry.pw_uid != os.geteuid()
    warden = str(ordinary.project / "build/bin/cloche-warden")
    return Role(name, ordinary.entry if other else None, warden, ordinary.home)


@contextmanager
def domain(binary: str) -> Iterator[Warden]:
    """Provide a warden that has said Ready; its domain ends with the block."""
    with Warden.start(binary) as warden:
        assert next_events(warden) == [Ready()]
        yield warden


def next_events(warden: Warden) -> list[Event]:
    """Wait for the next events, for PATIENCE_S at most."""
    poll = select.poll()
    poll.register(warden.fileno(), select.POLLIN)
    assert poll.poll(PATIENCE_S * 1000), "the warden says nothing"
    return warden.receive()


def outcome(warden: Warden, spec: SpawnSpec, fds: Sequence[int] = ()) -> Exited | Failed:
    """Start a process and return how it ended, or why it was not started."""
    warden.send_spawn(spec, fds)
    while True:
        for event in next_events(warden):
            if isinstance(event, Spawned):
                os.close(event.pidfd)
            elif isinstance(event, Exited | Failed) and event.id == spec.id:
                return event


def output(warden: Warden, script: str, jail: Jail | None = None, fds: dict[int, int] | None = None) -> str:
    """Run a shell script in a jail and return what it wrote to stdout and stderr; its status comes last.

    ``fds`` are more descriptors for it: its number, then ours.
    """
    reader, writer = os.pipe()
    more = fds or {}
    try:
        spec = shell(script, jail, fds=(1, 2, *more))
        ended = outcome(warden, spec, (writer, writer, *more.values()))
    finally:
        os.close(writer)
        with open(reader, "rb") as file:
            written = file.read().decode(errors="replace")
    if isinstance(ended, Failed):
        return f"{written}failed: {ended.reason()}"
    return f"{written}status: {ended.status if not ended.signal else -ended.signal}"


def shell(script: str, jail: Jail | None = None, *, ident: int = 1, fds: tuple[int, ...] = ()) -> SpawnSpec:
    """Return a process that runs ``script`` with /bin/sh, in the jail of ``small_jail`` by default."""
    return SpawnSpec(
        id=ident,
        name=b"script",
        argv=(b"/bin/sh", b"-c", script.encode()),
        env=(b"PATH=/usr/bin:/usr/sbin", b"LC_ALL=C"),
        jail=jail if jail is not None else small_jail(),
        fds=fds,
    )


def small_jail(*more: RootOp, namespaces: int = ALONE) -> Jail:
    """Return a jail that shows the host's programs, /proc and /dev, and ``more``."""
    return Jail(namespaces=namespaces, root=(*programs(), Proc(b"/proc"), Dev(b"/dev"), *more))


def own_ids(jail: Jail, warden: Warden, ident: int = 1) -> Jail:
    """Return a jail with the ids that a domain's launcher would fill in."""
    if jail.uid != OWN:
        return jail
    ids = find_ids()
    assert ids is not None
    number = ids.number(warden.pid, ident)
    return jail._replace(uid=number, gid=number)


def programs() -> tuple[RootOp, ...]:
    """Return what a shell needs: /usr read-only, and /bin, /lib ... as the host has them."""
    ops: list[RootOp] = [Bind(b"/usr", b"/usr", READ_ONLY)]
    for name in ("/bin", "/sbin", "/lib", "/lib64"):
        if os.path.islink(name):
            ops.append(Symlink(os.readlink(name).encode(), name.encode()))
        elif os.path.isdir(name):
            ops.append(Bind(name.encode(), name.encode(), READ_ONLY))
    return (*ops, Dir(b"/tmp", 0o1777))


def descendants(pid: int) -> list[leaks.Process]:
    """Return the process and all below it, by following parents."""
    table = leaks.processes()
    found = {pid: table[pid]}
    grown = True
    while grown:
        below = {one.pid: one for one in table.values() if one.parent in found and one.pid not in found}
        found.update(below)
        grown = bool(below)
    return list(found.values())


def wait_dead(pidfds: Sequence[int], limit_s: float) -> list[int]:
    """Wait until the processes have ended; return the descriptors of those that have not."""
    poll = select.poll()
    alive = set(pidfds)
    for fd in alive:
        poll.register(fd, select.POLLIN)
    deadline = monotonic() + limit_s
    while alive and (left := deadline - monotonic()) > 0:
        for fd, _ in poll.poll(left * 1000):
            poll.unregister(fd)
            alive.discard(fd)
    return sorted(alive)


def read_line(fd: int) -> str:
    """Read one line, byte by byte, waiting for PATIENCE_S at most for each."""
    line = b""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while not line.endswith(b"\n"):
        assert poll.poll(PATIENCE_S * 1000), f"nothing comes after {line!r}"
        byte = os.read(fd, 1)
        assert byte, f"end of file after {line!r}"
        line += byte
    return line.decode(sys.getfilesystemencoding()).rstrip("\n")
