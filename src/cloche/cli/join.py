"""``cloche exec|shell|attach`` (layer 6): programs beside the one a domain was started for, and that one itself.

The supervisor gets this process's streams and moves the bytes; what stays here is the terminal, the signals and the
status.
"""

from __future__ import annotations

import os

from cloche.cli.terminal import Terminal
from cloche.domain.control import talk, wire
from cloche.domain.control.client import Control
from cloche.domain.control.joining import Attach, Exec, Started, Words, store_words
from cloche.domain.find import find_domain
from cloche.errors import DomainError, UsageError
from cloche.host.reactor import READ, Reactor
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.parser import Parsed

#: Of the caller's environment, what belongs to the terminal.
_OF_TERMINAL = (b"TERM", b"COLORTERM")
#: The administrator's own shell, or the one that every guest has.
_SHELL = (b"/bin/sh", b"-c", b'cd; test -x "$SHELL" && exec "$SHELL" -l; exec /bin/sh -l')


def exec_(parsed: Parsed) -> int:
    """Run a program in a running domain and return its status."""
    words = parsed.operands[1:]
    if words[:1] == ("--",):
        words = words[1:]
    if not words:
        raise UsageError("no program was named", hint="For example: cloche exec DOMAIN -- ps aux")
    return _execute(parsed, tuple(os.fsencode(word) for word in words), str(parsed.get("user", "")))


def shell(parsed: Parsed) -> int:
    """Be root in a running domain."""
    if len(parsed.operands) > 1:
        raise UsageError(
            "`cloche shell` takes a domain and nothing else", hint="`cloche exec` runs programs."
        )
    return _execute(parsed, _SHELL, str(parsed.get("user", "root")))


def _execute(parsed: Parsed, argv: tuple[bytes, ...], user: str) -> int:
    asked = parsed.get("tty")
    terminal = Terminal(os.isatty(0) and os.isatty(1) if asked is None else bool(asked))
    env: tuple[tuple[bytes, bytes], ...] = ()
    if terminal.wanted:
        env = tuple((name, os.environb[name]) for name in _OF_TERMINAL if name in os.environb)
    if "env" in parsed.values:
        from cloche.cli.run import read_variable

        env += tuple(read_variable(word) for word in parsed.values["env"])  # type: ignore[attr-defined]
    joined = _Joined(find_domain(parsed.operands[0] if parsed.operands else None).ident, terminal)
    words = store_words(Words(argv, env))
    rows, cols = terminal.size() if terminal.wanted else (0, 0)
    workdir = str(parsed.get("workdir", ""))
    joined.begin(Exec(terminal.wanted, rows, cols, user, workdir), (0, 1, 2, words))
    os.close(words)
    return joined.run()


def attach(parsed: Parsed) -> int:
    """Lend this terminal, or these streams, to a detached program until it ends or is let go."""
    from cloche import log
    from cloche.domain.control.life import AskLife, LifeNow

    if len(parsed.operands) > 1:
        raise UsageError("`cloche attach` takes one domain", hint="Write: cloche attach DOMAIN")
    ident = find_domain(parsed.operands[0] if parsed.operands else None).ident
    with Control(ident) as control:
        life = control.ask(AskLife(), LifeNow.read)
    terminal = Terminal(life.terminal and os.isatty(0) and os.isatty(1))
    if terminal.wanted:
        log.notice("attached; Ctrl-] leaves the program alone again")
    joined = _Joined(ident, terminal)
    rows, cols = terminal.size() if terminal.wanted else (0, 0)
    joined.begin(Attach(not parsed.get("no_stdin"), rows, cols), (0, 1, 2))
    return joined.run()


class _Joined:
    """The client's end of a conversation with a domain's supervisor."""

    def __init__(self, ident: str, terminal: Terminal) -> None:
        self._ident = ident
        self._control = Control(ident, None)
        self._terminal = terminal
        self._terminal.change_keeper(_Keeper(self._control))
        self._reactor = Reactor()
        self._has_begun = False
        self._status: int | None = None

    def begin(self, asked: wire.Request, fds: tuple[int, ...]) -> None:
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

    def run(self) -> int:
        """Return the program's status when it has ended, 0 when it is let go."""
        self._reactor.register(self._control.fileno(), READ, self._heard)
        try:
            self._reactor.run_until(lambda: self._status is not None)
        finally:
            self._terminal.restore()
            self._reactor.close()
        assert self._status is not None
        return self._status

    def _heard(self, events: int) -> None:
        del events
        packet = self._control.receive()
        if not packet:
            raise self._gone()
        if not talk.is_event(packet):
            Started.read(wire.decode_answer(packet))
            self._has_begun = True
            return
        event = talk.decode_event(packet)
        if event.kind == talk.STOPPED:
            self._terminal.stop_self(event.value)
            self._order(talk.Order(talk.CONTINUE))
            if self._terminal.taken:
                self._terminal.take(self._reactor, self._resized)
        elif event.kind == talk.EXITED:
            self._status = event.status
            if event.oom:
                from cloche import log

                log.notice("the program was ended because the machine's memory was used up")
        else:
            self._status = 0

    def _gone(self) -> DomainError:
        what = "before the program" if self._has_begun else "before the program was started"
        return DomainError(
            f"the domain {self._ident} has ended {what}", hint="`cloche ps` lists those that run."
        )

    def _signal(self, signo: int) -> None:
        self._order(talk.Order(talk.SIGNAL, signo))

    def _resized(self) -> None:
        if self._terminal.wanted:
            self._order(talk.Order(talk.RESIZE, *self._terminal.size()))

    def _order(self, order: talk.Order) -> None:
        try:
            self._control.send(talk.encode_order(order))
        except OSError:
            return  # it has ended, which is heard next


class _Keeper:
    """Has the supervisor keep the terminal's mode: it outlives this process, however that ends."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def raw(self, terminal: int, saved: bytes, raw: bytes) -> None:
        """Tell, before it is done, that the terminal becomes raw (``Keeper.raw``)."""
        del terminal  # the supervisor has it: it is the program's first stream
        self._send(talk.Order(talk.RAW, modes=saved + raw))

    def restored(self) -> None:
        """Tell, after it was done, that there is nothing to restore any more (``Keeper.restored``)."""
        self._send(talk.Order(talk.RESTORED))

    def _send(self, order: talk.Order) -> None:
        try:
            self._control.send(talk.encode_order(order))
        except OSError:
            return  # the domain has ended: this process restores the mode itself
