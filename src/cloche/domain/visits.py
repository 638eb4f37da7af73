"""Being attached to a detached program (layer 5): a client lends it its streams until it leaves."""

from __future__ import annotations

import os
from functools import partial

from cloche.domain.control import talk
from cloche.domain.control.joining import Started
from cloche.domain.control.life import programs_of
from cloche.domain.control.wire import encode_answer
from cloche.domain.joins import TerminalWatch, end_of, may_read, obey
from cloche.errors import DomainError
from cloche.guest.fdio import BACKGROUND_S, open_reader, open_writer
from cloche.host.outlog import STDOUT
from cloche.host.reactor import READ, WRITE
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.domain.control.joining import Attach
    from cloche.domain.control.life import Governed
    from cloche.domain.control.talk import Link, Order
    from cloche.guest.job import Job
    from cloche.host.reactor import Timer

#: Ctrl-], typed at a terminal, leaves the program alone (as telnet and `virsh console` have it).
LEAVE = b"\x1d"


class Visit:
    """One such client.

    Raises:
        DomainError: The program has its caller's streams, or somebody is attached to it.
    """

    def __init__(self, launcher: Governed, asked: Attach, fds: list[int], link: Link) -> None:
        programs = programs_of(launcher)
        programs.domain.life.require_running()
        outlet = programs.outlet
        if outlet is None or outlet.job is None:
            raise DomainError(
                "the domain's program has the streams of whoever has started it, and cannot be attached to",
                hint="`cloche exec` and `cloche shell` start others beside it.",
            )
        if programs.status is not None:
            raise DomainError("the domain's program has ended; only what has joined it still runs")
        if outlet.visitor is not None:
            raise DomainError("somebody is attached to the domain's program already")
        self._outlet = outlet
        self._job = outlet.job
        self._link = link
        self._reactor = programs.domain.reactor
        self._watch = TerminalWatch(fds[0])
        self._later: Timer | None = None
        self._at_terminal = os.isatty(fds[0])
        self._may_read = partial(may_read, link.client, lines=not outlet.has_terminal)
        wants_input = asked.wants_input and outlet.takes_input
        self._reader = open_reader(fds[0]) if wants_input else None
        self._writers = {stream: open_writer(fds[stream]) for stream in (1, 2)}
        link.listener = self
        link.send(encode_answer(Started(0)))
        outlet.visitor = self
        if outlet.has_terminal and asked.rows and asked.cols:
            if outlet.size == (asked.rows, asked.cols):
                # A change and back, so that a program that draws on all of it does so although nothing has changed.
                self._job.resize(asked.rows + 1, asked.cols)
            self._resize(asked.rows, asked.cols)
        outlet.go_on()

    def write(self, stream: int, data: bytes) -> int:
        """Take output (``Visitor``)."""
        writer = self._writers[1 if stream == STDOUT else 2]
        try:
            taken = writer.write(data)
        except OSError:
            # Nobody reads what the program writes any more: it goes on alone.
            self._leave()
            return len(data)
        if taken < len(data):
            self._wait_for(writer.fileno(), WRITE)
        return taken

    def _wait_for(self, fd: int, what: int) -> None:
        """Go on when a descriptor can be read or written to."""

        def ready(events: int) -> None:
            del events
            self._reactor.unregister(fd)
            self._outlet.go_on()

        if not self._reactor.registered(fd):
            self._reactor.register(fd, what, ready)

    def read(self, size: int) -> bytes | None:
        """Give input (``Visitor``)."""
        if self._reader is None:
            return None
        if self._at_terminal and not self._may_read(self._reader.fileno()):
            if self._later is None:
                self._later = self._reactor.call_later(BACKGROUND_S, self._again)
            return None
        try:
            data = self._reader.read(size)
        except OSError:
            data = b""  # a terminal that was hung up
        if data is None:
            self._wait_for(self._reader.fileno(), READ)
            return None
        if not data and self._at_terminal:
            self._reader.close()
            self._reader = None
            return None
        if self._at_terminal and LEAVE in data:
            data = data.partition(LEAVE)[0]
            self._reactor.call_soon(self._leave)
            return data or None
        return data

    def _again(self) -> None:
        self._later = None
        self._outlet.go_on()

    def ended(self, job: Job) -> None:
        """The program has ended (``Visitor``)."""
        self._link.listener = None
        if job.exited is not None:
            self._link.send(talk.encode_event(end_of(job)), last=True)
        self._close()

    def _leave(self) -> None:
        """Let the client go, and the program go on."""
        if self._outlet.visitor is self:
            self._link.listener = None
            self._link.send(talk.encode_event(talk.Event(talk.LET_GO)), last=True)
            self._close()
            # Not at once: this may be in the middle of moving what is to be moved.
            self._reactor.call_soon(self._outlet.go_on)

    def _resize(self, rows: int, cols: int) -> None:
        self._outlet.size = rows, cols
        self._job.resize(rows, cols)

    def heard(self, order: Order) -> None:
        """Do what the client says."""
        if order.kind == talk.RESIZE:
            self._resize(min(order.first, 0xFFFF), min(order.second, 0xFFFF))
        else:
            obey(self._job, self._watch, order)

    def gone(self) -> None:
        """The client has gone without a word; the program goes on."""
        self._watch.restore()
        self._close()
        self._outlet.go_on()

    def _close(self) -> None:
        if self._outlet.visitor is self:
            self._outlet.visitor = None
        self._watch.close()
        if self._later is not None:
            self._later.cancel()
        for file in (self._reader, *self._writers.values()):
            if file is not None and file.fileno() >= 0:
                self._reactor.unregister(file.fileno())
                file.close()
        self._reader = None
        self._writers = {}
