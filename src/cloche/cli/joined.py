"""The client's end of a conversation about one program (layer 6): signals, terminal and status.

The supervisor has this process's streams and moves the bytes.
"""

from __future__ import annotations

import os

from cloche.domain.control import talk, wire
from cloche.errors import DomainError
from cloche.host.reactor import READ, Reactor
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.terminal import Terminal
    from cloche.domain.control.client import Control
    from cloche.domain.control.fields import Message


class Joined:
    """The client's end of a conversation with a domain's supervisor."""

    def __init__(self, ident: str, control: Control, terminal: Terminal) -> None:
        self._ident = ident
        self._control = control
        self._terminal = terminal
        self._terminal.change_keeper(_Keeper(self._control))
        self._reactor = Reactor()
        self._has_begun = False
        self._status: int | None = None

    def begin(self, asked: Message, fds: tuple[int, ...]) -> None:
        """Ask for it, and let go of the streams: at their other ends it is to be seen when the program closes them."""
        # Before anything of it can run: a signal from now on is the program's.
        self._terminal.watch_signals(self._reactor, self._signal, self._resized)
        try:
            self._control.send(wire.encode_request(asked), fds)
        except OSError:
            raise self._gone() from None
        if not self._terminal.wanted:
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            for number in (0, 1):
                os.dup2(null, number)
            os.close(null)
        self._terminal.take(self._reactor, self._resized)

    def close(self) -> None:
        """Watch nothing any more."""
        self._terminal.restore()
        self._reactor.close()

    def run(self) -> int:
        """Return the program's status when it has ended, 0 when it is let go."""
        self._reactor.register(self._control.fileno(), READ, self._heard)
        try:
            self._reactor.run_until(lambda: self._status is not None)
        finally:
            self.close()
        assert self._status is not None
        return self._status

    def _heard(self, events: int) -> None:
        del events
        packet = self._control.receive()
        if not packet:
            raise self._gone()
        if not talk.is_event(packet):
            wire.decode_answer(packet)
            self._has_begun = True
            return
        event = talk.decode_event(packet)
        if event.kind == talk.STOPPED:
            self._terminal.stop_self(event.value)
            _tell(self._control, talk.Order(talk.CONTINUE))
            if self._terminal.taken:
                self._terminal.take(self._reactor, self._resized)
        elif event.kind == talk.EXITED:
            self._status = event.status
            if event.oom:
                from cloche import log

                log.notice("the program was ended because the machine's memory was used up")
        elif event.kind == talk.OTHERS:
            self._terminal.restore()
            from cloche import log

            log.notice(
                f"the program has ended; {event.value} that joined it still run in its machine, "
                f"which goes with the last of them (`cloche stop {self._ident}` ends it)"
            )
        else:
            self._status = 0

    def _gone(self) -> DomainError:
        what = "before the program" if self._has_begun else "before the program was started"
        return DomainError(
            f"the domain {self._ident} has ended {what}", hint="`cloche ps` lists those that run."
        )

    def _signal(self, signo: int) -> None:
        _tell(self._control, talk.Order(talk.SIGNAL, signo))

    def _resized(self) -> None:
        if self._terminal.wanted:
            _tell(self._control, talk.Order(talk.RESIZE, *self._terminal.size()))


class _Keeper:
    """Has the supervisor keep the terminal's mode: it outlives this process, however that ends."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def raw(self, terminal: int, saved: bytes, raw: bytes) -> None:
        """Tell, before it is done, that the terminal becomes raw (``Keeper.raw``)."""
        del terminal  # the supervisor has it: it is the program's first stream
        _tell(self._control, talk.Order(talk.RAW, modes=saved + raw))

    def restored(self) -> None:
        """Tell, after it was done, that there is nothing to restore any more (``Keeper.restored``)."""
        _tell(self._control, talk.Order(talk.RESTORED))


def _tell(control: Control, order: talk.Order) -> None:
    try:
        control.send(talk.encode_order(order))
    except OSError:
        return  # the domain has ended, which is heard next; this process restores its terminal itself
