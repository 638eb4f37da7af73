"""The monitor of a VMM that goes on from a template, or becomes one (layer 5). Any other machine's is left alone."""

from __future__ import annotations

from cloche.errors import ClocheError, DomainError, TemplateError
from cloche.host.reactor import READ
from cloche.record import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from cloche.host.reactor import Reactor
    from cloche.model.plan import OpenFile


class TemplateWork(Protocol):
    """What is to be done with a machine's memory and monitor: filled from a template, or made into one.

    Attributes:
        files: What the VMM receives; the launcher closes it.
    """

    files: dict[OpenFile, int]

    def begin(self, monitor: socket.socket) -> None:
        """Use the monitor before the VMM exists."""

    def started(self, pidfd: int, monitor: socket.socket) -> None:
        """Note that the VMM has been started.

        Raises:
            TemplateError: The template is of no use.
        """

    def heard(self, data: bytes) -> None:
        """Take what the monitor says.

        Raises:
            TemplateError: The template is of no use.
        """

    def close(self) -> None:
        """Let everything go. May be called twice."""


class Monitor:
    """Stands between a VMM's monitor and the work."""

    def __init__(
        self,
        reactor: Reactor,
        connection: socket.socket,
        work: TemplateWork,
        failed: Callable[[ClocheError], None],
    ) -> None:
        """Begin the work; ``failed`` is called when it comes to nothing."""
        self._reactor = reactor
        self._socket: socket.socket | None = connection
        self._work = work
        self._failed = failed
        work.begin(connection)
        reactor.register(connection.fileno(), READ, self._read)

    def started(self, pidfd: int) -> None:
        """Note that the VMM has been started."""
        if self._socket is None:
            return
        try:
            self._work.started(pidfd, self._socket)
        except TemplateError as error:
            self._failed(error)

    def give_up(self) -> socket.socket:
        """Return the connection: the work is done, and somebody else has other work.

        Raises:
            DomainError: The VMM has hung up.
        """
        if self._socket is None:
            raise DomainError("the machine's monitor has hung up")
        connection, self._socket = self._socket, None
        self._reactor.unregister(connection.fileno())
        return connection

    def _read(self, events: int) -> None:
        del events
        assert self._socket is not None
        try:
            data = self._socket.recv(65536)
        except OSError:
            data = b""
        if not data:
            self.close()  # the VMM has ended, and its end says why
            return
        try:
            self._work.heard(data)
        except TemplateError as error:
            self._failed(error)

    def close(self) -> None:
        """Listen no more. May be called twice."""
        if self._socket is not None:
            self._reactor.unregister(self._socket.fileno())
            self._socket.close()
            self._socket = None
