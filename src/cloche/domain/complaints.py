"""What a process of a domain says on stderr (layer 5): kept for the message should it fail, and only its end."""

from __future__ import annotations

import os

from cloche.host.reactor import READ
from cloche.host.text import escape_untrusted
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.host.reactor import Reactor

_KEPT = 4096


class Complaints:
    """The stderr of one process.

    Attributes:
        theirs: The end that the process is to have; closed here by ``sent``.
    """

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._fd, self.theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._text = b""
        reactor.register(self._fd, READ, self._read)

    def sent(self) -> None:
        """Note that the process has its own copy of its end now."""
        os.close(self.theirs)
        self.theirs = -1

    def _read(self, events: int) -> None:
        del events
        try:
            data = os.read(self._fd, _KEPT)
        except BlockingIOError:
            return
        self._text = (self._text + data)[-_KEPT:]
        if not data:
            self.close()

    def last_words(self) -> tuple[str, ...]:
        """Return its last line, made safe to show; none if it said nothing."""
        if self._fd >= 0:
            self._read(READ)
        lines = [escape_untrusted(line, 300) for line in self._text.split(b"\n") if line.strip()]
        return tuple(lines[-1:])

    def close(self) -> None:
        """Listen no more. May be called twice."""
        if self._fd >= 0:
            self._reactor.unregister(self._fd)
            os.close(self._fd)
            self._fd = -1
        if self.theirs >= 0:
            self.sent()
