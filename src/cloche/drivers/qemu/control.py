"""QEMU's monitor while the machine runs (layer 4): pausing it and letting it go on.

QMP is one JSON object a line; commands carry a number, answers the same one, and events none (docs/interop/qmp-spec).
QEMU is not trusted once it runs: what it says is bounded, and nothing of it is believed but that it has said so.
"""

from __future__ import annotations

from cloche.errors import DomainError
from cloche.host.reactor import READ
from cloche.host.text import escape_untrusted
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.errors import ClocheError
    from cloche.host.reactor import Reactor, Timer
    from cloche.lean import socket

    Done = Callable[[ClocheError | None], None]

_PATIENCE_S = 10.0
_LONGEST_LINE = 1 << 20


class QmpControl:
    """The supervisor's end of a monitor."""

    def __init__(self, reactor: Reactor, connection: socket.socket, greeted: bool) -> None:
        """Take the connection over; one that was not ``greeted`` takes commands after its own greeting."""
        self._reactor = reactor
        self._socket = connection
        self._socket.setblocking(False)
        self._heard = b""
        self._last = 0
        self._asked: dict[int, tuple[Done, Timer]] = {}
        reactor.register(connection.fileno(), READ, self._read)
        if not greeted:
            self._ask("qmp_capabilities", _nothing)

    def pause(self, done: Done) -> None:
        """Stop the guest's clock and CPUs."""
        self._ask("stop", done)

    def resume(self, done: Done) -> None:
        """Go on."""
        self._ask("cont", done)

    def _ask(self, command: str, done: Done) -> None:
        self._last += 1
        number = self._last
        timer = self._reactor.call_later(_PATIENCE_S, lambda: self._over(number, "does not answer"))
        self._asked[number] = done, timer
        try:
            self._socket.send(b'{"execute":"%s","id":%d}\n' % (command.encode(), number))
        except OSError as error:
            self._over(number, f"cannot be told: {error.strerror}")

    def _read(self, events: int) -> None:
        del events
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._heard += data
        if not data or len(self._heard) > _LONGEST_LINE:
            # The end of the machine is heard elsewhere, with its reason.
            self.close()
            return
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            self._take(line)

    def _take(self, line: bytes) -> None:
        import json

        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            return
        number = said.get("id") if isinstance(said, dict) else None
        if (
            not isinstance(number, int)
            or number not in self._asked
            or not ("return" in said or "error" in said)
        ):
            return
        error = said.get("error")
        why = ""
        if error is not None:
            words = error.get("desc") if isinstance(error, dict) else None
            why = f"refuses: {escape_untrusted(str(words).encode('utf-8', 'backslashreplace'), 200)}"
        self._over(number, why)

    def _over(self, number: int, why: str) -> None:
        done, timer = self._asked.pop(number, (_nothing, None))
        if timer is not None:
            timer.cancel()
        done(
            DomainError(f"the machine's monitor {why}", hint="`cloche stop` ends the domain.")
            if why
            else None
        )

    def close(self) -> None:
        """Listen no more; what was asked fails. May be called twice."""
        if self._socket.fileno() >= 0:
            self._reactor.unregister(self._socket.fileno())
            self._socket.close()
        for number in list(self._asked):
            self._over(number, "is gone")


def _nothing(error: ClocheError | None) -> None:
    """Nobody waits for this answer."""
    del error
