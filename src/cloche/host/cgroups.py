"""Limits that the kernel counts for a process as a whole (layer 3a): a cgroup of version 2 for each.

A domain's are where whoever manages cgroups here (systemd, for a session) lets the caller make some: below the nearest
one above the caller's own that has the controllers of memory and of numbers for those below it. cgroups(7) and
Documentation/admin-guide/cgroup-v2.rst of Linux ("Delegation", "No Internal Process Constraint") have the rules.
"""

from __future__ import annotations

import os

from cloche.errors import HostError
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from cloche.model.jail import Limits

ROOT = "/sys/fs/cgroup"
_CONTROLLERS = frozenset((b"memory", b"pids"))
_PREFIX = "cloche-"


class Counted(Record):
    """How a process is limited by its cgroup.

    Attributes:
        path: The cgroup, a directory of ROOT; empty when there is none to be seen.
        memory: The most it may have in memory, in bytes; None for no limit.
        processes: The most threads it may have; None for no limit.
    """

    path: str
    memory: int | None = None
    processes: int | None = None


def find_parent() -> str:
    """Return the directory of the cgroup below which the caller may make some with limits; empty when there is none."""
    path = own_path("self")
    while path:
        directory = ROOT + path.rstrip("/")
        # Whoever moves a process must be allowed to write to the nearest one above both places.
        mine = os.access(f"{directory}/cgroup.procs", os.W_OK) and os.access(directory, os.W_OK)
        if mine and (_words(f"{directory}/cgroup.subtree_control") >= _CONTROLLERS or _is_top(directory)):
            return directory
        if path == "/":
            break
        path = os.path.dirname(path)
    return ""


def missing_controllers() -> tuple[str, ...]:
    """Return which controllers the kernel does not offer to cgroups of version 2."""
    missing = _CONTROLLERS - _words(f"{ROOT}/cgroup.controllers")
    return tuple(sorted(name.decode() for name in missing))


def own_path(process: int | str) -> str:
    """Return the cgroup of version 2 that a process is in, below ROOT; empty when the kernel shows none there."""
    text = _read(f"/proc/{process}/cgroup")
    for line in text.split(b"\n"):
        # What lies outside of the caller's own cgroup namespace has no name here.
        if line.startswith(b"0::/") and b"/.." not in line and os.path.exists(f"{ROOT}/cgroup.controllers"):
            return os.fsdecode(line[3:])
    return ""


def read_limits(process: int) -> Counted:
    """Return how the cgroup limits a process that it is in itself."""
    path = own_path(process)
    directory = ROOT + path
    return (
        Counted(path, _number(f"{directory}/memory.max"), _number(f"{directory}/pids.max"))
        if path
        else Counted("")
    )


class DomainCgroup:
    """The cgroups of one domain's processes. ``directory`` is that of the domain, whose name the warden knows."""

    def __init__(self, parent: str, warden: int) -> None:
        """Make that of the domain.

        Args:
            parent: Where (``find_parent``).
            warden: The process id of the warden's outer process, which removes what is called so in the end.

        Raises:
            HostError: The kernel refuses it.
        """
        self.directory = directory_of(parent, warden)
        self._kills: dict[str, int] = {}
        try:
            if not _words(f"{parent}/cgroup.subtree_control") >= _CONTROLLERS:
                _write(f"{parent}/cgroup.subtree_control", "+memory +pids")
            try:
                os.mkdir(self.directory, 0o755)
            except FileExistsError:
                # One that had this number before was killed before it could do that.
                remove(self.directory)
                os.mkdir(self.directory, 0o755)
            _write(f"{self.directory}/cgroup.subtree_control", "+memory +pids")
        except OSError as error:
            raise _refused(error) from None

    def open(self, name: str, limits: Limits) -> int:
        """Return a descriptor of the cgroup for a process, which is made at its first start; the caller closes it.

        Raises:
            HostError: The kernel refuses it.
        """
        directory = f"{self.directory}/{name}"
        try:
            if name not in self._kills:
                os.mkdir(directory, 0o755)
                _write(f"{directory}/memory.max", str(limits.memory))
                _write(f"{directory}/pids.max", str(limits.processes))
                self._kills[name] = 0
            return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _refused(error) from None

    def was_out_of_memory(self, name: str) -> bool:
        """Tell whether the kernel has ended a process for its limit of memory since the last time that was asked."""
        if name not in self._kills:
            return False
        before = self._kills[name]
        for line in _read(f"{self.directory}/{name}/memory.events").split(b"\n"):
            if line.startswith(b"oom_kill "):
                self._kills[name] = int(line[len(b"oom_kill ") :])
        return self._kills[name] > before


def directory_of(parent: str, warden: int) -> str:
    """Return the cgroup of the domain of a warden, by the process id of the latter's outer process."""
    return f"{parent}/{_PREFIX}{warden}"


def remove(directory: str) -> bool:
    """Remove a domain's cgroup; false when a process is left in it. One that is gone is no error."""
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    os.rmdir(entry.path)
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _refused(error: OSError) -> HostError:
    return HostError(
        f"cannot limit the memory of the domain's processes: {error.filename}: {error.strerror}",
        hint="`cloche doctor` says what can be had here; --insecure-no-jail=cgroups does without these limits.",
    )


def _is_top(directory: str) -> bool:
    """Whether this is the top of all, which alone may have processes and give its children controllers."""
    return (
        os.geteuid() == 0
        and directory == ROOT
        and not os.path.exists(f"{ROOT}/cgroup.type")
        and _words(f"{ROOT}/cgroup.controllers") >= _CONTROLLERS
    )


def _number(path: str) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None


def _words(path: str) -> frozenset[bytes]:
    return frozenset(_read(path).split())


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(65536) or b""
    except OSError:
        return b""


def _write(path: str, text: str) -> None:
    with open(path, "wb", buffering=0) as file:
        try:
            file.write(text.encode())
        except OSError as error:
            error.filename = path
            raise
