"""The machines that wait (layer 3a): a directory with one listening socket each.

The socket's name says what becomes of its machine: ``making,KEY,IDENT``, ``ready,KEY,IDENT``, ``taken,IDENT``. Who
wants one connects first and renames then: a name can be changed once, so one machine has one taker. The machine's
supervisor ends it when its name is gone and nobody is connected any more: whoever takes it and dies was connected.
A socket on which nobody listens is that of a supervisor that was killed, and is removed by whoever comes along.

This module is on the way to every start: where there is no pool it costs one system call.
"""

from __future__ import annotations

import os

from cloche.errors import HostError
from cloche.host import xdg
from cloche.lean import socket
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Iterable

MAKING, READY, TAKEN = "making", "ready", "taken"
_WAITING = 64


class Member(Record):
    """One entry: its state, key (none when it is taken) and identity."""

    state: str
    key: str
    ident: str

    @property
    def entry(self) -> str:
        """Its name in the directory."""
        return (
            f"{self.state},{self.ident}" if self.state == TAKEN else f"{self.state},{self.key},{self.ident}"
        )


def home() -> str:
    """Return the directory of the members, which exists only where somebody has set a pool."""
    return xdg.runtime_dir() + "-pool"


def own_key(key: str) -> str:
    """Return a key that only this installation of cloche uses: another one makes other machines."""
    status = os.stat(os.path.dirname(__file__))
    return f"{key}@{status.st_dev:x}.{status.st_ino:x}"


def settings_path() -> str:
    """Return where what the user has set for the pool is kept (``host.poolfile``)."""
    return os.path.join(xdg.config_dir(), "pool.toml")


def is_set() -> bool:
    """Tell whether the user has set a pool, in which there may be nobody."""
    return os.path.exists(settings_path())


def members() -> list[Member]:
    """Return all entries, those of the dead among them, the oldest identity in no particular order."""
    try:
        entries = os.listdir(home())
    except OSError:
        return []
    found = (_read(entry) for entry in entries)
    return [member for member in found if member is not None]


def _read(entry: str) -> Member | None:
    words = entry.split(",")
    if words[0] in (MAKING, READY) and len(words) == 3:
        return Member(*words)
    if words[0] == TAKEN and len(words) == 2:
        return Member(TAKEN, "", words[1])
    return None


def claim(keys: Iterable[str]) -> tuple[socket.socket, str] | None:
    """Take a machine of one of these kinds; return the connection with its supervisor, and its identity.

    None when nobody waits who could take the run.
    """
    if not xdg.is_private_directory(home()):
        return None
    waiting = [member for member in members() if member.state == READY]
    for key in keys:
        mine = own_key(key)
        for member in waiting:
            if member.key == mine:
                connection = take(member)
                if connection is not None:
                    return connection, member.ident
    return None


def take(member: Member) -> socket.socket | None:
    """Connect to a machine that waits and make it the caller's; None when it is somebody else's, or dead."""
    connection = connect(member)
    if connection is None:
        return None
    try:
        os.rename(os.path.join(home(), member.entry), os.path.join(home(), f"{TAKEN},{member.ident}"))
    except OSError:
        connection.close()
        return None
    return connection


def connect(member: Member) -> socket.socket | None:
    """Connect to the supervisor of a machine; None when that is gone (the entry is then removed) or its name was."""
    directory = home()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fd = -1
    try:
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        connection.setblocking(False)
        connection.connect(f"/proc/self/fd/{fd}/{member.entry}")
        connection.setblocking(True)
    except ConnectionRefusedError:
        # Nobody can listen on it again: whoever made it is dead.
        _remove(member)
        connection.close()
        return None
    except OSError:
        connection.close()
        return None
    finally:
        if fd >= 0:
            os.close(fd)
    return connection


def sweep() -> None:
    """Remove the entries of those that are dead."""
    for member in members():
        connection = connect(member)
        if connection is not None:
            connection.close()


def _remove(member: Member) -> None:
    try:
        os.unlink(os.path.join(home(), member.entry))
    except OSError:
        return


class Entry:
    """The place of one machine in the pool, and the socket behind it; its supervisor's.

    Attributes:
        listener: The socket.

    Raises:
        HostError: There is no room for it.
    """

    def __init__(self, key: str, ident: str) -> None:
        self._member = Member(MAKING, key, ident)
        directory = xdg.ensure_directory(home())
        self.listener = socket.socket(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Bound aside and listening before it has its name: one that refuses is that of a dead one.
            fresh = f"new-{ident}"
            self.listener.bind(f"/proc/self/fd/{fd}/{fresh}")
            self.listener.listen(_WAITING)
            os.rename(fresh, self._member.entry, src_dir_fd=fd, dst_dir_fd=fd)
        except OSError as error:
            self.listener.close()
            raise HostError(
                f"cannot make a socket in {directory}: {error.strerror}",
                hint="Free some space there, or set XDG_RUNTIME_DIR to a directory of yours.",
            ) from None
        finally:
            os.close(fd)

    def publish(self) -> None:
        """Let it be taken from now on.

        Raises:
            OSError: It was removed.
        """
        ready = self._member._replace(state=READY)
        os.rename(os.path.join(home(), self._member.entry), os.path.join(home(), ready.entry))
        self._member = ready

    def is_there(self) -> bool:
        """Tell whether nobody has taken it yet."""
        return os.path.lexists(os.path.join(home(), self._member.entry))

    def close(self) -> None:
        """Be in no pool any more. May be called twice."""
        if self.listener.fileno() >= 0:
            self.listener.close()
            _remove(self._member)
            _remove(self._member._replace(state=TAKEN))


def waiting() -> frozenset[str]:
    """Return the identities of the machines that wait, or will: nobody's domains yet."""
    return frozenset(member.ident for member in members() if member.state != TAKEN)
