"""Who comes to a machine of the pool (layer 5): its listening socket, and those who are connected.

Taking a machine is connecting, renaming, and saying so (``host.pool``). Here that is seen from the other side: when the
name is gone and nobody is connected any more, whoever has taken it is dead.
"""

from __future__ import annotations

import os
import socket
import struct

from cloche.domain.control import claiming, wire
from cloche.errors import ClocheError, ProtocolError
from cloche.host.reactor import ERROR, HANGUP, READ
from cloche.record import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from cloche.host.pool import Entry
    from cloche.host.reactor import Reactor

_CREDENTIALS = struct.Struct("3i")


class Wanted(Protocol):
    """What can be taken."""

    def look(self) -> claiming.Seen:
        """Say whether it is what it was made of."""
        raise NotImplementedError

    def claimed(self, taker: Taker, claim: claiming.Claim) -> Owner:
        """Be somebody's from now on."""
        raise NotImplementedError

    def lost(self) -> None:
        """Note that whoever has taken it was gone before a word."""
        raise NotImplementedError


class Owner(Protocol):
    """What serves the one who has taken a machine, until its program has begun."""

    def lent(self, lend: claiming.Lend, source: int) -> None:
        """Take a share; the descriptor is this method's to close."""
        raise NotImplementedError

    def begin(self, begin: claiming.Begin, fds: list[int]) -> None:
        """Run the program. The descriptors are closed afterwards."""
        raise NotImplementedError

    def gone(self) -> None:
        """Note that it has gone."""
        raise NotImplementedError


class Claims:
    """Listens for those who want the machine."""

    def __init__(self, reactor: Reactor, entry: Entry, wanted: Wanted) -> None:
        self._reactor = reactor
        self._entry = entry
        self._wanted = wanted
        self._comers: set[Taker] = set()
        self._listener = entry.listener
        reactor.register(self._listener.fileno(), READ, self._knocked)

    def _knocked(self, events: int) -> None:
        del events
        self._accept()

    def _accept(self) -> None:
        while self._listener.fileno() >= 0:
            try:
                fd, _ = self._listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001 - what accept() is made of
            except OSError:
                return
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=fd)
            connection.setblocking(False)
            pid, owner, _ = _CREDENTIALS.unpack(
                connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
            if owner != os.geteuid():
                connection.close()
                continue
            self._comers.add(Taker(self._reactor, connection, pid, self, self._wanted))

    def may_be_taken(self) -> bool:
        """Tell whether somebody has changed the name: only who has may say that it is his."""
        return not self._entry.is_there()

    def gone(self, taker: Taker) -> None:
        """Forget one; the last one to go after the name has gone leaves a machine that nobody will ever take."""
        self._comers.discard(taker)
        if not self._comers and self.may_be_taken():
            # Who has changed the name was connected before.
            self._accept()
            if not self._comers:
                self._wanted.lost()

    def close(self, besides: Taker | None = None) -> None:
        """Let nobody in any more, and everybody but the one out."""
        if self._listener.fileno() >= 0:
            self._reactor.unregister(self._listener.fileno())
        self._entry.close()
        for taker in self._comers - {besides}:
            taker.close()
        self._comers.clear()


class Taker:
    """One who is connected.

    Attributes:
        pid: The process id, as this process sees it.
        owner: What serves it once the machine is its own.
    """

    def __init__(
        self, reactor: Reactor, connection: socket.socket, pid: int, claims: Claims, wanted: Wanted
    ) -> None:
        self.pid = pid
        self._reactor = reactor
        self._socket = connection
        self._claims = claims
        self._wanted = wanted
        self.owner: Owner | None = None
        reactor.register(connection.fileno(), READ, self._event)

    def _event(self, events: int) -> None:
        if events & READ:
            self._receive()
        elif events & (HANGUP | ERROR):
            self._gone()

    def _receive(self) -> None:
        try:
            packet, fds, flags, _ = socket.recv_fds(
                self._socket, wire.MAX_PACKET + 1, wire.MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            packet, fds, flags = b"", [], 0
        try:
            if not packet:
                self._gone()
            else:
                if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                    raise ProtocolError("what is said to a machine of the pool is too long")
                self._heard(claiming.decode(packet, len(fds)), fds)
        except ClocheError as error:
            self.answer(wire.encode_failure(error))
            self._gone()
        finally:
            for fd in fds:
                os.close(fd)

    def _heard(
        self, said: claiming.Look | claiming.Claim | claiming.Lend | claiming.Begin, fds: list[int]
    ) -> None:
        if isinstance(said, claiming.Look):
            self.answer(wire.encode_answer(self._wanted.look()))
        elif isinstance(said, claiming.Claim):
            if self.owner is not None or not self._claims.may_be_taken():
                raise ProtocolError("a machine of the pool is somebody else's")
            self._claims.close(besides=self)
            self.owner = self._wanted.claimed(self, said)
        elif self.owner is None:
            raise ProtocolError("a machine of the pool is told to begin by somebody who has not taken it")
        elif isinstance(said, claiming.Lend):
            self.owner.lent(said, os.dup(fds[0]))
        else:
            self.owner.begin(said, fds)

    def answer(self, packet: bytes) -> None:
        """Say something; one that does not take it is not waited for."""
        try:
            self._socket.send(packet, socket.MSG_NOSIGNAL)
        except OSError:
            return  # it has gone, which is heard next

    def give_up(self) -> socket.socket:
        """Return the connection, which is the caller's from now on."""
        self._reactor.unregister(self._socket.fileno())
        connection, self._socket = self._socket, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.close()
        return connection

    def _gone(self) -> None:
        if self._socket.fileno() < 0:
            return
        self.close()
        if self.owner is not None:
            self.owner.gone()
        else:
            self._claims.gone(self)

    def close(self) -> None:
        """Let it go. May be called twice."""
        if self._socket.fileno() >= 0:
            self._reactor.unregister(self._socket.fileno())
            self._socket.close()
