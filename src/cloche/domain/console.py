"""The guest's console (layer 5): its last words explain a failed boot."""

from __future__ import annotations

from cloche.host.reactor import READ
from cloche.host.text import escape_untrusted
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from cloche.host.reactor import Reactor

#: As much of it as is kept, in bytes.
_KEPT = 16 * 1024
#: What the kernel says when a program has called reboot(2), each a line of its own (kernel/reboot.c).
_REBOOT_LINES = {
    b"reboot: Restarting system": "restarted",
    b"reboot: Power down": "switched off",
    b"reboot: Power off not available: System halted instead": "switched off",
    b"reboot: System halted": "halted",
}


class Console:
    """What the guest says on its console.

    Attributes:
        sink: Called with the bytes as they come.
        stands_still: Called when a program of the guest has switched its machine off or halted it, with that word.
    """

    def __init__(self, reactor: Reactor) -> None:
        self.sink: Callable[[bytes], None] | None = None
        self.stands_still: Callable[[str], None] | None = None
        self._reactor = reactor
        self._kept = bytearray()
        self._socket: socket.socket | None = None

    def listen(self, connection: socket.socket) -> None:
        """Take the connection over and hear what comes."""
        connection.setblocking(False)
        self._socket = connection
        self._reactor.register(connection.fileno(), READ, self._read)

    def _read(self, events: int) -> None:
        del events
        assert self._socket is not None
        try:
            data = self._socket.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._kept += data
        del self._kept[:-_KEPT]
        if self.sink is not None:
            self.sink(data)
        done = self.rebooted() if b"\n" in data else None
        if done is not None and done != "restarted" and self.stands_still is not None:
            self.stands_still(done)

    def rebooted(self) -> str | None:
        """Return what a program of the guest has done to its machine, if that is the kernel's last word.

        Whoever can write such a line by other means is root of the guest, and could do the same.
        """
        last = bytes(self._kept).replace(b"\r", b"").rstrip(b"\n").rpartition(b"\n")[2]
        return _REBOOT_LINES.get(last.rpartition(b"] ")[2])

    def tail(self, lines: int = 8) -> list[str]:
        """Return the last lines, made safe to show."""
        text = bytes(self._kept).replace(b"\r", b"").split(b"\n")
        return [escape_untrusted(line, 200) for line in text if line.strip()][-lines:]

    def drain(self) -> None:
        """Read what the guest has said until now: its last words may still be in the socket."""
        while self._socket is not None:
            before = len(self._kept), bytes(self._kept[-64:])
            self._read(READ)
            if (len(self._kept), bytes(self._kept[-64:])) == before:
                return

    def close(self) -> None:
        """Hear no more. May be called twice."""
        if self._socket is not None:
            self._reactor.unregister(self._socket.fileno())
            self._socket.close()
            self._socket = None
