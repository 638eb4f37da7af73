"""Asking a running domain something (layer 5), from any process of its owner's."""

from __future__ import annotations

import os
import struct
import sys

from cloche.domain.control import wire
from cloche.domain.control.door import DOOR
from cloche.domain.endpoints import Reach
from cloche.errors import DomainError, ProtocolError
from cloche.host import xdg
from cloche.lean import socket
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self, TypeVar

    from cloche.domain.control.fields import Message

    T = TypeVar("T")

#: A supervisor that says nothing for so long is taken for stuck, in seconds. A guest has half as long to answer it.
PATIENCE_S = 90.0


class Control:
    """A connection to a domain's supervisor. A context manager. Without ``patience_s`` an answer may take for ever.

    A ``connection`` that there is already is taken over.

    Raises:
        DomainError: The domain has ended, or its supervisor does not listen.
    """

    def __init__(
        self,
        ident: str,
        patience_s: float | None = PATIENCE_S,
        connection: socket.socket | None = None,
    ) -> None:
        self._ident = ident
        self._unsent: OSError | None = None
        self._socket = connection or socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if connection is not None:
            self._socket.settimeout(patience_s)
            return
        # Where many wait to be let in, connecting takes its time too.
        seconds = int(patience_s or PATIENCE_S)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", seconds, 0))
        path = os.path.join(xdg.runtime_dir(), ident, DOOR)
        try:
            with Reach(path) as reachable:
                self._socket.connect(reachable)
            self._socket.settimeout(patience_s)
        except (FileNotFoundError, ConnectionRefusedError):
            # The second: its supervisor listens no more, and is about to remove what there is.
            self._socket.close()
            raise DomainError(
                f"the domain {ident} has ended, or has not begun yet",
                hint="`cloche ps` lists those that run.",
            ) from None
        except OSError as error:
            self._socket.close()
            raise DomainError(
                f"the domain {ident} cannot be asked: {error.strerror or error}",
                hint="It may be starting or ending: `cloche ps` lists those that run.",
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ask nothing more. May be called twice."""
        self._socket.close()

    def set_patience(self, seconds: float | None) -> None:
        """Wait for the next packets at most so long; without one for ever."""
        self._socket.settimeout(seconds)

    def fileno(self) -> int:
        """The socket, for who waits for it."""
        return self._socket.fileno()

    def send(self, packet: bytes, fds: Sequence[int] = ()) -> None:
        """Send one packet, and descriptors with it.

        Raises:
            OSError: The supervisor is gone.
        """
        rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
        self._socket.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else [])

    def receive(self) -> bytes:
        """Return the next packet; nothing when the supervisor is gone."""
        try:
            return self._socket.recv(wire.MAX_PACKET + 1)
        except ConnectionResetError:
            return b""

    def ask(self, request: Message, kind: Callable[..., T], fds: Sequence[int] = ()) -> T:
        """Ask something and wait for the answer, which is of this kind.

        Raises:
            ClocheError: What the supervisor has raised, or that it is gone.
        """
        self.begin(request, fds)
        return self.finish(kind)

    def begin(self, request: Message, fds: Sequence[int] = ()) -> None:
        """Ask something, and do something else before ``finish``, which also says what kept it from being asked."""
        try:
            self.send(wire.encode_request(request), fds)
        except OSError as error:
            self._unsent = error

    def finish(self, kind: Callable[..., T]) -> T:
        """Wait for the answer, which is of this kind.

        Raises:
            ClocheError: What the supervisor has raised, or that it is gone.
        """
        try:
            if self._unsent is not None:
                raise self._unsent
            answer = self._socket.recv(wire.MAX_PACKET + 1)
        except (BrokenPipeError, ConnectionResetError):
            answer = b""
        except OSError as error:
            why = "it does not answer" if isinstance(error, TimeoutError) else str(error.strerror)
            raise DomainError(
                f"the supervisor of the domain {self._ident} cannot be heard: {why}",
                hint="`cloche ps` lists the domains that run.",
            ) from None
        if not answer:
            raise DomainError(
                f"the domain {self._ident} has ended",
                hint="`cloche ps` lists those that run.",
            )
        if len(answer) > wire.MAX_PACKET:
            raise ProtocolError("the domain's supervisor gives an answer that is too long")
        return wire.read_answer(answer, kind)
