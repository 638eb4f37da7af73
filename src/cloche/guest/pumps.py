"""Moves bytes between a stream and what stands at its host end (layer 3).

An input pump reads a descriptor or a callable and writes the stream, an output pump does the reverse. Nothing is read
that the agent has no room for, and nothing is acknowledged that was not delivered: memory stays within the window.
Each turn moves a bounded amount, so that one busy stream starves nobody.
"""

from __future__ import annotations

import errno
import os

from cloche.guest.fdio import BACKGROUND_S, in_foreground, open_reader, open_writer
from cloche.host.reactor import ERROR, HANGUP, READ, WRITE
from cloche.record import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.guest.fdio import FdWriter
    from cloche.guest.mux import Mux
    from cloche.guest.streams import Receiver, Sender
    from cloche.host.reactor import Reactor

_CHUNK = 65536
#: Chunks moved in one turn.
_PER_TURN = 4

#: Errors of a write that mean "nobody reads any more", which a program sees as SIGPIPE.
_GONE = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ESHUTDOWN})


class Link(Protocol):
    """What a pump needs of its session."""

    reactor: Reactor
    mux: Mux

    def flush_soon(self) -> None:
        """Send what the mux has, at the end of this turn."""


class InputPump:
    """Reads ``fd`` into a stream while the agent grants room; passes on its end.

    Attributes:
        error: What reading failed with, if it did; the agent was told ABORTED.
        closed: Nothing is read any more.
        on_close: Called when that begins; the caller may then let go of its own descriptor.
        may_read: Asked before a terminal is read, whether what was typed is this pump's.
    """

    def __init__(self, link: Link, sender: Sender, fd: int) -> None:
        self._link = link
        self._sender = sender
        self._reader = open_reader(fd)
        self._is_terminal = os.isatty(fd)
        self.may_read: Callable[[int], bool] = in_foreground
        self.error: OSError | None = None
        self.closed = False
        self.on_close: Callable[[], None] | None = None

    def update(self) -> None:
        """The stream has news: credit, STOP or its end."""
        if self.closed:
            return
        sender = self._sender
        if sender.finished or sender.stopped:
            self.close()
            return
        # Without credit the descriptor is not watched at all: with no events asked for, a hang-up would still be
        # reported again and again.
        reactor = self._link.reactor
        fd = self._reader.fileno()
        if not sender.credit:
            reactor.unregister(fd)
        elif not reactor.registered(fd):
            reactor.register(fd, READ, self._readable)

    def _readable(self, _events: int) -> None:
        if self._is_terminal and not self.may_read(self._reader.fileno()):
            # What is typed is another program's, or another job's: then reading it would stop this one.
            self._link.reactor.unregister(self._reader.fileno())
            self._link.reactor.call_later(BACKGROUND_S, self.update)
            return
        sender = self._sender
        for _ in range(_PER_TURN):
            size = min(_CHUNK, sender.credit)
            if not size:
                break
            try:
                data = self._reader.read(size)
            except OSError as error:
                # A terminal that was hung up reads as EIO; to the program it is the end of its input.
                if error.errno != errno.EIO:
                    self.error = error
                data = b""
            if data is None:
                break
            if not data:
                self._link.mux.end(sender, aborted=self.error is not None)
                self.close()
                break
            self._link.mux.write(sender, data)
            if len(data) < size:
                break
        self._link.flush_soon()
        self.update()

    def abandon(self) -> None:
        """Whoever typed or wrote has gone in the middle of it."""
        if not self.closed:
            self._link.mux.end(self._sender, aborted=True)
            self._link.flush_soon()
            self.close()

    def close(self) -> None:
        """Stop reading; the caller's descriptor stays open. Harmless when repeated."""
        if not self.closed:
            self.closed = True
            self._link.reactor.unregister(self._reader.fileno())
            self._reader.close()
            if self.on_close is not None:
                self.on_close()


class SourcePump:
    """Asks a callable for bytes: ``source(size)`` gives at most size bytes, ``b""`` at the end, None for "later".

    After None somebody has to call ``update`` when there is more.
    """

    error: OSError | None = None

    def __init__(self, link: Link, sender: Sender, source: Callable[[int], bytes | None]) -> None:
        self._link = link
        self._sender = sender
        self._source = source
        self.closed = False

    def update(self) -> None:
        """The stream or the source has news."""
        sender = self._sender
        if sender.finished or sender.stopped:
            self.close()
        while not self.closed and sender.credit:
            data = self._source(min(_CHUNK, sender.credit))
            if data is None:
                break
            if data:
                if self._link.mux.write(sender, data) < len(data):
                    raise ValueError("a source gave more than it was asked for")
            else:
                self._link.mux.end(sender)
                self.close()
        self._link.flush_soon()

    def close(self) -> None:
        """Ask no more."""
        self.closed = True


class OutputPump:
    """Writes a stream to ``fd``; when its reader goes away, even while nothing is written, tells the agent.

    Attributes:
        error: What writing failed with other than a reader that left (a full disk); the agent was told STOP.
        closed: Nothing is written any more.
        on_close: Called when that begins; the caller may then let go of its own descriptor.
    """

    def __init__(self, link: Link, receiver: Receiver, fd: int) -> None:
        self._link = link
        self._receiver = receiver
        self._writer: FdWriter = open_writer(fd)
        self.error: OSError | None = None
        self.closed = False
        self.on_close: Callable[[], None] | None = None
        # No events: only an error or a hang-up, which is how a pipe without a reader shows.
        link.reactor.register(self._writer.fileno(), 0, self._event)

    def update(self) -> None:
        """The stream has news: bytes or its end."""
        if self.closed:
            return
        try:
            waiting = self._drain()
        except OSError as error:
            self._broken(error)
            return
        if self._receiver.finished:
            self.close()
        else:
            self._link.reactor.modify(self._writer.fileno(), WRITE if waiting else 0)
        self._link.flush_soon()

    def write_through(self, make: Callable[[FdWriter], FdWriter]) -> None:
        """Put what ``make`` returns, which writes to its argument, between the stream and the descriptor."""
        self._writer = make(self._writer)

    def _drain(self) -> bool:
        """Write what there is; True when some is left."""
        receiver = self._receiver
        mux = self._link.mux
        for _ in range(_PER_TURN):
            chunk = receiver.peek()
            if not chunk:
                return False
            written = self._writer.write(chunk)
            if not written:
                return True
            mux.consumed(receiver, written)
        return bool(receiver.peek())

    def _event(self, events: int) -> None:
        if events & (ERROR | HANGUP):
            self._broken(None)
        else:
            self.update()

    def _broken(self, error: OSError | None) -> None:
        if error is not None and error.errno not in _GONE:
            self.error = error
        self._link.mux.stop(self._receiver)
        self._link.flush_soon()
        self.close()

    def abandon(self) -> None:
        """Whoever read has gone."""
        if not self.closed:
            self._broken(None)

    def close(self) -> None:
        """Stop writing; the caller's descriptor stays open. Harmless when repeated."""
        if not self.closed:
            self.closed = True
            self._link.reactor.unregister(self._writer.fileno())
            self._writer.close()
            if self.on_close is not None:
                self.on_close()


class SinkPump:
    """Hands a stream to a callable, which takes everything it gets, or says of how many bytes that is true.

    After less than everything somebody has to call ``update`` when there is room.
    """

    error: OSError | None = None

    def __init__(self, link: Link, receiver: Receiver, sink: Callable[[bytes], int | None]) -> None:
        self._link = link
        self._receiver = receiver
        self._sink = sink
        self.closed = False

    def update(self) -> None:
        """The stream has news."""
        while not self.closed and (chunk := self._receiver.peek()):
            size = len(chunk)
            taken = self._sink(bytes(chunk))
            if taken is None:
                taken = size
            if taken:
                self._link.mux.consumed(self._receiver, taken)
            if taken < size:
                break
        self._link.flush_soon()

    def close(self) -> None:
        """Call it no more; what still comes is thrown away."""
        self.closed = True


Pump = InputPump | SourcePump | OutputPump | SinkPump
