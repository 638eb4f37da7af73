"""Connecting a guest with programs of the host that listen for it (layer 5; ``protocol/vsock.md``).

The process that moves the bytes can name no socket. It says a port, and gets a stream to whoever listens at the path of
the domain's sockets with that port behind it: what the guest itself may have, and nothing else.
"""

from __future__ import annotations

import os
import stat
import struct

from cloche import log
from cloche.host.reactor import READ
from cloche.lean import socket
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.host.reactor import Reactor

_PORT = struct.Struct("<I")
_NOBODY, _CONNECTED = b"\0", b"\1"
_CREDENTIALS = struct.Struct("iII")


class Switchboard:
    """The supervisor's end of the socket.

    Args:
        reactor: Who calls when something is heard.
        connection: To the process.
        path: Where the domain itself listens.

    Raises:
        OSError: The directory of ``path`` is gone.
    """

    def __init__(self, reactor: Reactor, connection: socket.socket, path: str) -> None:
        directory, self._name = os.path.split(path)
        # Kept open: whatever is made of its name later, this is where the sockets are.
        self._directory = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._reactor = reactor
        self._socket = connection
        self._socket.setblocking(False)
        self._begun = b""
        reactor.register(connection.fileno(), READ, self._hear)

    def close(self) -> None:
        """Connect nobody any more. May be called twice."""
        if self._directory >= 0:
            self._reactor.unregister(self._socket.fileno())
            self._socket.close()
            os.close(self._directory)
            self._directory = -1

    def _hear(self, events: int) -> None:
        del events
        try:
            piece = self._socket.recv(_PORT.size - len(self._begun))
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece:
            # It has ended; the word of that comes from elsewhere.
            self.close()
            return
        self._begun += piece
        if len(self._begun) == _PORT.size:
            (port,) = _PORT.unpack(self._begun)
            self._begun = b""
            self._connect(port)

    def _connect(self, port: int) -> None:
        stream = connect_in(self._directory, f"{self._name}_{port}")
        try:
            if stream is None:
                self._socket.send(_NOBODY)
            else:
                rights = struct.pack("i", stream.fileno())
                self._socket.sendmsg([_CONNECTED], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        except OSError as error:
            # One that reads no answers and asks on is none of ours any more.
            log.debug(f"vsock cannot be answered: {error.strerror}")
            self.close()
        finally:
            if stream is not None:
                stream.close()


def connect_in(directory: int, name: str) -> socket.socket | None:
    """Connect to a socket of this name in an open directory; None when nobody of the caller's listens there.

    No link is followed, and whoever listens is the caller or root: what another user has put there is not what the
    caller has named.
    """
    try:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return None
    stream = None
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return None
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.setblocking(False)
        stream.connect(f"/proc/self/fd/{fd}")
        credentials = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, uid, _ = _CREDENTIALS.unpack(credentials)
        if uid not in (os.geteuid(), 0):
            log.debug(f"{name} belongs to another user, and is not connected to")
            stream.close()
            return None
    except OSError as error:
        log.debug(f"cannot connect to {name}: {error.strerror}")
        if stream is not None:
            stream.close()
        return None
    finally:
        os.close(fd)
    return stream
