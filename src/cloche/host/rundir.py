"""Run directories (layer 3a): one per domain, locked as long as its supervisor lives.

A run directory holds sockets and nothing that must survive. Its lock tells whether the supervisor is alive: the kernel
lets go of it whatever way the process ends, so that the next command can remove what a killed one left behind.
"""

from __future__ import annotations

import fcntl
import os

from cloche.errors import DomainError, HostError
from cloche.host import pool, xdg
from cloche.host.pids import has_ended, start_time, stat_fields
from cloche.record import Record

_LOCK = "lock"
_OWNER = "warden"
_CGROUP = "cgroup"
_DOOR = "door"
_NEW = "new-"
#: With it begin the names of domains, and nothing else does (``host.names``, which a run without one does without).
_NAMES = "@"
#: A directory without a lock is being made right now, unless it is older than this, in seconds.
_NEW_GRACE_S = 60


class Running(Record):
    """A running domain, as its run directory tells.

    Attributes:
        ident: The domain's name.
        warden: The process id of the warden's outer process.
        start: When that was started, in clock ticks since the host's boot.
        insecure: The parts of its jails that were given up (``--insecure-no-jail``).
        name: What its owner calls it; empty where nobody has named it.
        cgroup: The directory of its cgroup; empty when its processes have none of their own.
    """

    ident: str
    warden: int
    start: int
    insecure: tuple[str, ...]
    name: str = ""
    cgroup: str = ""


class RunDirectory:
    """An own directory below the runtime directory, removed by ``close``.

    Attributes:
        name: What its owner calls the domain, which nobody else of that user's is called; empty without.
    """

    def __init__(self, path: str, lock: int, ident: str) -> None:
        self.path = path
        self.ident = ident
        self.name = ""
        self._lock = lock

    @classmethod
    def create(cls, name: str = "") -> RunDirectory:
        """Make and lock a run directory with a fresh random identity, and take the name.

        Raises:
            HostError: The runtime directory cannot be used.
            DomainError: A running domain has the name.
        """
        parent = xdg.ensure_directory(xdg.runtime_dir())
        ident = os.urandom(6).hex()
        path = os.path.join(parent, ident)
        building = os.path.join(parent, _NEW + ident)
        lock = -1
        try:
            # Locked under a temporary name first: a directory with a real name always has its lock held by the living.
            os.mkdir(building, 0o700)
            lock = os.open(os.path.join(building, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.rename(building, path)
        except OSError as error:
            _remove(building)
            if lock >= 0:
                os.close(lock)
            raise HostError(
                f"cannot make the run directory {path}: {error.strerror}",
                hint="Free some space there, or set XDG_RUNTIME_DIR to a directory of yours.",
            ) from None
        made = cls(path, lock, ident)
        if name:
            try:
                made.rename(name)
            except BaseException:
                made.close()
                raise
        return made

    def rename(self, name: str) -> None:
        """Take a name in place of the present one, if it is nobody's.

        Raises:
            DomainError: A running domain has it.
            HostError: There is no room for it.
        """
        from cloche.host import names

        parent = os.path.dirname(self.path)
        try:
            with names.locked(parent):
                require_free(name, parent, self.ident)
                names.take(parent, name, self.ident)
                if self.name and self.name != name:
                    names.drop(parent, self.name, self.ident)
        except OSError as error:
            raise HostError(
                f"the name {name} cannot be taken: {error.strerror}",
                hint="Free some space there, or set XDG_RUNTIME_DIR to a directory of yours.",
            ) from None
        self.name = name

    def _give_name_back(self) -> None:
        from cloche.host import names

        parent = os.path.dirname(self.path)
        try:
            with names.locked(parent):
                names.drop(parent, self.name, self.ident)
        except OSError as error:
            from cloche import log

            log.debug(f"the name {self.name} cannot be given back: {error.strerror}")

    def file(self, name: str) -> str:
        """Return the path of a file in the directory."""
        return os.path.join(self.path, name)

    def record_warden(self, pid: int, insecure: tuple[str, ...] = ()) -> None:
        """Write down below which process everything of the domain is, for those who look at it from outside.

        Raises:
            HostError: There is no room for it.
        """
        start = start_time(pid)
        if start is not None:
            self._note(_OWNER, " ".join((str(pid), str(start), *insecure)))
        # Else it has ended already: there is nothing to look at, and what it said is heard later.

    def record_cgroup(self, directory: str) -> None:
        """Write down where the domain's cgroup is, for the audit, and for whoever removes it when nobody else has.

        Raises:
            HostError: There is no room for it.
        """
        self._note(_CGROUP, directory)

    def record_door(self, mark: str) -> None:
        """Write down which socket outside of the directory is the domain's (``door_mark``): it goes with it.

        Raises:
            HostError: There is no room for it.
        """
        self._note(_DOOR, mark)

    def _note(self, name: str, text: str) -> None:
        try:
            # A link needs no room on a full disk, and whoever reads it reads all of it.
            os.symlink(text, self.file(name))
        except OSError as error:
            raise HostError(
                f"cannot make {self.file(name)}: {error.strerror}",
                hint="Free some space there, or set XDG_RUNTIME_DIR to a directory of yours.",
            ) from None

    def close(self) -> None:
        """Remove the directory. May be called twice.

        One that has a cgroup is left to the next command's sweep when neither this nor the warden can remove that.
        """
        if self._lock >= 0:
            if self.name:
                self._give_name_back()
            # A warden that is not there (any more) may have just done it.
            if _is_cgroup_gone(self.path) or _has_warden(self.path) or _is_cgroup_gone(self.path):
                _remove(self.path)
            os.close(self._lock)
            self._lock = -1


def sweep() -> int:
    """Remove the run directories whose supervisor is dead; return how many there were."""
    parent = xdg.runtime_dir()
    removed = 0
    # Somebody else who can write there could have us remove any directory of ours.
    if not xdg.is_private_directory(parent):
        return 0
    try:
        entries = os.listdir(parent)
    except OSError:
        return 0
    for entry in entries:
        path = os.path.join(parent, entry)
        abandoned = not entry.startswith(_NAMES) and _is_abandoned(path, new=entry.startswith(_NEW))
        if abandoned and _is_cgroup_gone(path):
            _remove(path)
            removed += 1
    if any(entry.startswith(_NAMES) for entry in entries):
        _forget_names(parent)
    return removed


def _forget_names(parent: str) -> None:
    """Remove the names whose domains are gone."""
    from cloche.host import names

    try:
        with names.locked(parent):
            for ident, name in names.all_names(parent).items():
                if not os.path.isdir(os.path.join(parent, ident)):
                    names.drop(parent, name, ident)
    except OSError:
        return  # the next command tries it again


def find_running(*, waiting: bool = False) -> tuple[Running, ...]:
    """Return the caller's running domains, by name. One that is being made or taken down is not among them.

    Nor is one that waits in the pool, unless those that are ``waiting`` are asked for, too.
    """
    parent = xdg.runtime_dir()
    if not xdg.is_private_directory(parent):
        return ()
    from cloche.host import names

    try:
        called = names.all_names(parent)
        entries = sorted(os.listdir(parent))
    except OSError:
        return ()
    hidden = frozenset() if waiting else pool.waiting()
    found = (
        _read_running(parent, entry, called.get(entry, ""))
        for entry in entries
        if not entry.startswith((_NEW, _NAMES)) and entry not in hidden
    )
    return tuple(running for running in found if running is not None)


def _read_running(parent: str, ident: str, name: str) -> Running | None:
    path = os.path.join(parent, ident)
    if _is_abandoned(path, new=False):
        return None
    words = _read_note(path, _OWNER).split(" ")
    if len(words) < 2 or not all(word.isascii() and word.isdigit() for word in words[:2]):
        return None
    cgroup = _read_note(path, _CGROUP)
    return Running(ident, int(words[0]), int(words[1]), tuple(words[2:]), name, cgroup)


def wait_for_end(ident: str) -> None:
    """Return when the supervisor of a domain is gone, in whatever way; at once if it is."""
    try:
        lock = os.open(
            os.path.join(xdg.runtime_dir(), ident, _LOCK), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        )
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
    finally:
        os.close(lock)


def _read_note(path: str, name: str) -> str:
    try:
        return os.readlink(os.path.join(path, name))
    except OSError:
        return ""


def _is_cgroup_gone(path: str) -> bool:
    """Remove the cgroup of a domain that has ended; false when a process is left in it."""
    directory = _read_note(path, _CGROUP)
    if not directory:
        return True
    from cloche.host.cgroups import remove

    return remove(directory)


def _has_warden(path: str) -> bool:
    """Whether the warden lives whose last work it is to remove the cgroup."""
    pid, _, rest = _read_note(path, _OWNER).partition(" ")
    try:
        fields = stat_fields(int(pid))
    except (OSError, ValueError):
        return False
    return not has_ended(fields) and rest.split(" ")[0] == fields[19]


def require_free(name: str, parent: str, ident: str = "") -> None:
    """Check that no running domain but ``ident`` is called so, in this runtime directory.

    Raises:
        DomainError: One is.
    """
    from cloche.host import names

    holder = names.holder(parent, name)
    if holder not in ("", ident) and not _is_abandoned(os.path.join(parent, holder), new=False):
        raise DomainError(
            f"a running domain of yours is called {name} already",
            hint="Choose another name; `cloche ps` lists them.",
        )


def _is_abandoned(path: str, *, new: bool) -> bool:
    if os.path.islink(path):
        return False
    try:
        lock = os.open(os.path.join(path, _LOCK), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return _is_old(path)
    except OSError:
        return False  # no run directory, or too many open files: no reason to think that its owner is dead
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        gone = os.fstat(lock).st_nlink == 0
    except OSError:
        return False
    finally:
        os.close(lock)
    # One that is gone was just removed by its owner, in order.
    return not gone and (not new or _is_old(path))


def _is_old(path: str) -> bool:
    import time

    try:
        return time.time() - os.lstat(path).st_mtime > _NEW_GRACE_S
    except OSError:
        return False


def door_mark(path: str) -> str:
    """Return what tells a socket at ``path`` from one that somebody makes there later.

    Raises:
        OSError: Nothing is there.
    """
    found = os.lstat(path)
    # A number alone may be given to the next file at once. Nobody writes to a socket: the time is that of its making.
    return f"{found.st_mode >> 12}.{found.st_dev}.{found.st_ino}.{found.st_mtime_ns}:{path}"


def _remove_door(directory: str) -> None:
    mark = _read_note(directory, _DOOR)
    path = mark.partition(":")[2]
    try:
        if path and door_mark(path) == mark:
            os.unlink(path)
    except OSError:
        return  # somebody else has removed it, or may not be reached any more


def _remove(path: str) -> None:
    _remove_door(path)
    # Two commands may sweep at once: whoever comes second finds nothing, and that is what was wanted.
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                try:
                    os.unlink(entry.path)
                except FileNotFoundError:
                    continue
        os.rmdir(path)
    except FileNotFoundError:
        return
    except OSError as error:
        from cloche import log

        log.debug(f"cannot remove {path}: {error.strerror}")
