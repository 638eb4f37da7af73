"""The socket at which a running domain can be asked something (layer 5): on the way to every start, and so small."""

from __future__ import annotations

from cloche.domain.endpoints import Reach
from cloche.errors import HostError
from cloche.host.reactor import READ
from cloche.lean import socket
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.domain.control.server import Server
    from cloche.domain.launcher import Launcher
    from cloche.host.reactor import Reactor
    from cloche.host.rundir import RunDirectory

#: Its name in the run directory, which only its owner can enter.
DOOR = "supervisor.sock"
_WAITING = 64


class Door:
    """Listens in the run directory; who knocks is served by ``server``, which is loaded then.

    Raises:
        HostError: The socket cannot be made.
    """

    def __init__(self, reactor: Reactor, directory: RunDirectory, launcher: Launcher) -> None:
        self._reactor = reactor
        self._launcher = launcher
        self._server: Server | None = None
        self._listener = socket.socket(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        path = directory.file(DOOR)
        try:
            with Reach(path) as reachable:
                self._listener.bind(reachable)
                self._listener.listen(_WAITING)
        except OSError as error:
            self._listener.close()
            raise HostError(
                f"cannot make the socket {path}: {error.strerror}",
                hint="Free some space there, or set XDG_RUNTIME_DIR to a directory of yours.",
            ) from None
        reactor.register(self._listener.fileno(), READ, self._knocked)

    def _knocked(self, events: int) -> None:
        del events
        from cloche.domain.control.server import Server

        self._server = self._server or Server(self._reactor, self._launcher, self._listener)
        self._server.accept()

    def close(self) -> None:
        """Let nobody in any more, and everybody out. May be called twice."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._listener.fileno() >= 0:
            self._reactor.unregister(self._listener.fileno())
            self._listener.close()
