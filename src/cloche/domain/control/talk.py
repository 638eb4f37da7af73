"""What is said over a connection that goes on (layer 5; ``protocol/control.md``), and the supervisor's end of it.

A client that has asked for a program stays connected as long as that runs. It says what happens to it (signals, the
size and the mode of its terminal), and is told what becomes of the program. One packet is one message, as everywhere
on this socket.
"""

from __future__ import annotations

import struct

from cloche.domain.control.wire import DONE, FAILED, VERSION
from cloche.errors import ProtocolError
from cloche.host.keeper import MODE_SIZE
from cloche.host.reactor import ERROR, HANGUP, READ, WRITE
from cloche.lean import socket
from cloche.record import TYPE_CHECKING, Protocol, Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.host.reactor import Reactor

#: What the supervisor says after its answer: the program was stopped, has ended, goes on without this client, or has
#: ended while so many others run in its machine.
STOPPED, EXITED, LET_GO, OTHERS = 2, 3, 4, 5
#: What the client says.
SIGNAL, RESIZE, RAW, RESTORED, CONTINUE = 1, 2, 3, 4, 5

_LONGEST = 4096
#: Events that a client has not taken; one that lets more wait is sent away.
_MOST_EVENTS = 64
_EVENT = struct.Struct("<BBIIB")
_ORDER = struct.Struct("<BBII")


class Event(Record):
    """Something the supervisor says.

    Attributes:
        kind: STOPPED, EXITED, LET_GO or OTHERS.
        value: The signal that has stopped the program; or its exit status, or the signal that has ended it;
            or how many others run.
        by_signal: Whether it was a signal that has ended it.
        oom: Whether the machine's memory was used up.
    """

    kind: int
    value: int = 0
    by_signal: bool = False
    oom: bool = False

    @property
    def status(self) -> int:
        """The status as a shell shows it."""
        return self.value + (128 if self.by_signal else 0)


class Order(Record):
    """Something the client says. ``first`` is the signal or the rows, ``second`` the columns, ``modes`` RAW's two."""

    kind: int
    first: int = 0
    second: int = 0
    modes: bytes = b""


def encode_event(event: Event) -> bytes:
    """Return the packet of an event."""
    return _EVENT.pack(VERSION, event.kind, event.value, event.by_signal, event.oom)


def decode_event(packet: bytes) -> Event:
    """Return the event in a packet.

    Raises:
        ProtocolError: There is none.
    """
    if (
        len(packet) != _EVENT.size
        or packet[0] != VERSION
        or packet[1] not in (STOPPED, EXITED, LET_GO, OTHERS)
    ):
        raise ProtocolError(
            "the domain's supervisor says something that this version of cloche does not know"
        )
    _, kind, value, by_signal, oom = _EVENT.unpack(packet)
    return Event(kind, value, bool(by_signal), bool(oom))


def is_event(packet: bytes) -> bool:
    """Tell an event from an answer."""
    return packet[1:2] not in (bytes([DONE]), bytes([FAILED]))


def encode_order(order: Order) -> bytes:
    """Return the packet of an order."""
    return _ORDER.pack(VERSION, order.kind, order.first, order.second) + order.modes


def decode_order(packet: bytes) -> Order:
    """Return the order in a packet.

    Raises:
        ProtocolError: There is none.
    """
    if len(packet) < _ORDER.size:
        raise ProtocolError("an order ends too early")
    version, kind, first, second = _ORDER.unpack_from(packet)
    modes = packet[_ORDER.size :]
    if version != VERSION or kind not in (SIGNAL, RESIZE, RAW, RESTORED, CONTINUE):
        raise ProtocolError("there is no such order")
    if len(modes) != (2 * MODE_SIZE if kind == RAW else 0):
        raise ProtocolError("an order has the wrong length")
    if kind == SIGNAL and not 0 < first <= 64:
        raise ProtocolError(f"there is no signal {first}")
    return Order(kind, first, second, modes)


class Listener(Protocol):
    """Who takes part in a conversation for the supervisor."""

    def heard(self, order: Order) -> None:
        """Do what the client says."""
        raise NotImplementedError

    def gone(self) -> None:
        """Note that the client has gone, or is sent away because the domain has ended."""
        raise NotImplementedError


class Link:
    """The supervisor's end of such a connection. ``over`` is called when it is closed.

    Attributes:
        listener: Who is told what is heard, and of the end.
        client: The process id of the client as this process sees it; 0 where it does not.
    """

    def __init__(
        self, reactor: Reactor, connection: socket.socket, client: int, over: Callable[[Link], None]
    ) -> None:
        self.listener: Listener | None = None
        self.client = client
        self._reactor = reactor
        self._socket = connection
        self._over = over
        self._waiting: list[bytes] = []
        self._last = False
        reactor.register(connection.fileno(), READ, self._event)

    def send(self, packet: bytes, *, last: bool = False) -> None:
        """Say something; after the ``last`` of it the connection is closed."""
        if self._socket.fileno() < 0:
            return
        self._waiting.append(packet)
        self._last = self._last or last
        if len(self._waiting) > _MOST_EVENTS:
            self.close()
        else:
            self._flush()

    def _flush(self) -> None:
        while self._waiting:
            try:
                self._socket.send(self._waiting[0], socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._reactor.modify(self._socket.fileno(), READ | WRITE)
                return
            except OSError:
                self.close()
                return
            del self._waiting[0]
        if self._last:
            self.close()
        else:
            self._reactor.modify(self._socket.fileno(), READ)

    def _event(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        elif events & READ:
            self._hear()
        elif events & (HANGUP | ERROR):
            self.close()

    def _hear(self) -> None:
        try:
            packet = self._socket.recv(_LONGEST, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        try:
            order = decode_order(packet)
        except ProtocolError:
            self.close()  # it has gone, or talks nonsense
            return
        if self.listener is not None:
            self.listener.heard(order)

    def close(self) -> None:
        """End the conversation. May be called twice."""
        if self._socket.fileno() < 0:
            return
        self._reactor.unregister(self._socket.fileno())
        self._socket.close()
        self._over(self)
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.gone()
