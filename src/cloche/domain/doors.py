"""Sockets at a path of the caller's choice, where a domain listens (layer 5)."""

from __future__ import annotations

import os
import stat

from cloche.domain.endpoints import Reach
from cloche.errors import NetworkError
from cloche.host.rundir import door_mark
from cloche.lean import socket
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.host.rundir import RunDirectory

_BACKLOG = 64


def open_door(path: str, directory: RunDirectory) -> socket.socket:
    """Listen at ``path``, for the caller's programs alone; it goes with the run directory.

    A socket that somebody left there who was killed is replaced.

    Raises:
        NetworkError: Something is there already, or the path cannot be used.
    """
    try:
        try:
            return _listen(path, directory)
        except OSError:
            if not _is_dead(path):
                raise
            os.unlink(path)
            return _listen(path, directory)
    except OSError as error:
        raise NetworkError(
            f"cannot listen at {path}: {error.strerror}",
            hint="Name a path where nothing is, in a directory of yours.",
        ) from None


def _listen(path: str, directory: RunDirectory) -> socket.socket:
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The file that is made gets the mode of the socket: there is no moment at which others may connect.
        os.fchmod(door.fileno(), 0o600)
        with Reach(path) as reachable:
            door.bind(reachable)
        directory.record_door(door_mark(path))
        door.listen(_BACKLOG)
    except BaseException:
        door.close()
        raise
    return door


def _is_dead(path: str) -> bool:
    """Whether a socket of the caller's is there, and nobody listens."""
    found = os.lstat(path)
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
        return False
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.setblocking(False)
    try:
        with Reach(path) as reachable:
            probe.connect(reachable)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    finally:
        probe.close()
    return False
