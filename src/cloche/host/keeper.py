"""The supervisor's side of its terminal's keeper (layer 3): who gives the terminal its mode back when all else fails.

``protocol/warden.md`` is the specification. The keeper is the warden's outer process: it lives in a session of its own
and outlives this process, however that ends, by the instant it needs.
"""

from __future__ import annotations

import sys

from cloche.lean import socket

#: Size of the kernel's ``struct termios`` in bytes.
MODE_SIZE = 36


class Keeper:
    """This process's end of the socket. Not thread-safe.

    The end of it, by ``close`` or by this process's death, restores what ``raw`` told of last.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def raw(self, terminal: int, saved: bytes, raw: bytes) -> None:
        """Tell, before it is done, that ``terminal`` becomes ``raw``, and was ``saved`` (both of TCGETS)."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, terminal.to_bytes(4, sys.byteorder))]
        self._send(b"\x01" + saved + raw, rights)

    def restored(self) -> None:
        """Tell, after it was done, that there is nothing to restore any more."""
        self._send(b"\x02", [])

    def close(self) -> None:
        """End it. Harmless when repeated."""
        self._socket.close()

    def _send(self, packet: bytes, rights: list[tuple[int, int, bytes]]) -> None:
        if self._socket.fileno() < 0:
            return
        try:
            self._socket.sendmsg([packet], rights)
        except (BrokenPipeError, ConnectionResetError):
            # Somebody has killed it, and the domain with it: this process restores the mode itself as it ends.
            self._socket.close()
