"""Telling a server of shares what was taken away (layer 5; ``protocol/shares.md``)."""

from __future__ import annotations

import struct

from cloche.host.reactor import READ
from cloche.host.text import describe_errno
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from cloche.host.reactor import Reactor, Timer

    Answered = Callable[[str], None]

_ORDER = struct.Struct("<I")
_ANSWER = struct.Struct("<III")
#: The server has one thread and closes descriptors; one that takes longer is stuck or was taken over, in seconds.
_PATIENCE_S = 20.0


class Orders:
    """The supervisor's end of the socket, one order at a time."""

    def __init__(self, reactor: Reactor, connection: socket.socket) -> None:
        self._reactor = reactor
        self._socket = connection
        self._socket.setblocking(False)
        self._begun = b""
        self._answered: Answered | None = None
        self._timer: Timer | None = None
        self._number = 0
        reactor.register(connection.fileno(), READ, self._hear)

    def let_go(self, number: int, answered: Answered) -> None:
        """Have the server drop what it holds of the share ``number``; ``answered`` gets "" or why it did not."""
        self._answered, self._number = answered, number
        self._timer = self._reactor.call_later(_PATIENCE_S, lambda: self._over("it does not answer"))
        try:
            self._socket.send(_ORDER.pack(number))
        except OSError as error:
            self._over(f"it cannot be told: {error.strerror}")

    def close(self) -> None:
        """Close the socket. May be called twice."""
        if self._socket.fileno() >= 0:
            self._reactor.unregister(self._socket.fileno())
            self._socket.close()

    def _hear(self, events: int) -> None:
        del events
        try:
            piece = self._socket.recv(_ANSWER.size - len(self._begun))
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece:
            self.close()
            self._over("it has ended")
            return
        self._begun += piece
        if len(self._begun) < _ANSWER.size:
            return
        number, code, _ = _ANSWER.unpack(self._begun)
        self._begun = b""
        # An answer that comes after its time is nobody's.
        if self._answered is not None and number == self._number:
            self._over(f"it answers: {describe_errno(code)}" if code else "")

    def _over(self, reason: str) -> None:
        answered, self._answered = self._answered, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if answered is not None:
            answered(reason)
