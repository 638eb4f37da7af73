"""The supervisor's side of the control socket (layer 5): takes requests, never waits for a client.

A client has one request under way at a time and is not read from before it has taken the answer, so that what is
kept for it is one packet. One that goes away meanwhile changes nothing: what it has asked for is carried out.
"""

from __future__ import annotations

import os
import socket
import struct

from cloche import log
from cloche.domain.control import wire
from cloche.domain.control.joining import Attach, Exec, begin
from cloche.domain.control.life import Pause, Resume
from cloche.domain.control.talk import Link
from cloche.errors import ClocheError, DomainError, ProtocolError
from cloche.host.reactor import ERROR, HANGUP, READ, WRITE
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable

    from cloche.domain.control.fields import Message
    from cloche.domain.control.life import Fail
    from cloche.domain.control.wire import Question
    from cloche.domain.launcher import Launcher
    from cloche.host.reactor import Reactor

#: Conversations at once: as many programs as an agent has, and some who are attached.
MAX_LINKS = 112
#: More clients at once wait in the kernel until one of these has gone.
MAX_CLIENTS = 128
_CREDENTIALS = struct.Struct("3i")


class Server:
    """Everybody who is connected to a domain's control socket."""

    def __init__(
        self, reactor: Reactor, launcher: Launcher, listener: socket.socket | _socket.socket
    ) -> None:
        self._reactor = reactor
        self._launcher = launcher
        self._listener = listener
        self._clients: set[_Client] = set()
        self._links: set[Link] = set()

    def accept(self) -> None:
        """Let in who waits, if it is the owner."""
        while len(self._clients) < MAX_CLIENTS:
            try:
                fd, _ = self._listener._accept()  # type: ignore[union-attr]  # noqa: SLF001 - what accept() is made of
            except BlockingIOError:
                return
            except OSError as error:
                log.debug(f"control: nobody can be let in: {error.strerror}")
                return
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=fd)
            connection.setblocking(False)
            pid, owner, _ = _CREDENTIALS.unpack(
                connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
            # The directory lets in nobody else but root, who may ask by becoming the owner.
            if owner != os.geteuid():
                log.debug(f"control: a client of the user {owner} is sent away")
                connection.close()
                continue
            self._clients.add(_Client(self, self._reactor, self._launcher, connection, pid))
        self._reactor.modify(self._listener.fileno(), 0)

    def begin_talk(self, client: _Client, connection: socket.socket, pid: int) -> Link:
        """Let a client's connection be a conversation from now on.

        Raises:
            DomainError: There are too many.
        """
        if len(self._links) >= MAX_LINKS:
            raise DomainError(
                f"{MAX_LINKS} programs and clients have joined the domain, and more it cannot take",
                hint="Wait until one has ended.",
            )
        self.gone(client)
        link = Link(self._reactor, connection, pid, self._links.discard)
        self._links.add(link)
        return link

    def gone(self, client: _Client) -> None:
        """Forget a client, and let in who waits."""
        self._clients.discard(client)
        if self._listener.fileno() >= 0:
            self._reactor.modify(self._listener.fileno(), READ)

    def close(self) -> None:
        """Send everybody away."""
        for client in list(self._clients):
            client.close()
        for link in list(self._links):
            link.close()


class _Client:
    def __init__(
        self, server: Server, reactor: Reactor, launcher: Launcher, connection: socket.socket, pid: int
    ) -> None:
        self._server = server
        self._reactor = reactor
        self._launcher = launcher
        self._socket = connection
        self._pid = pid
        self._fds: list[int] = []
        self._busy = False
        self._unsent: bytes | None = None
        reactor.register(connection.fileno(), READ, self._event)

    def close(self) -> None:
        """Forget it. Its descriptors are closed when what it has asked for is over."""
        if self._socket.fileno() >= 0:
            self._reactor.unregister(self._socket.fileno())
            self._socket.close()
            self._server.gone(self)
        if not self._busy:
            self._close_fds()

    def _event(self, events: int) -> None:
        if self._unsent is not None and events & WRITE:
            self._send(self._unsent)
        elif events & READ and not self._busy:
            self._receive()
        elif events & (HANGUP | ERROR):
            self.close()

    def _receive(self) -> None:
        try:
            packet, self._fds, flags, _ = socket.recv_fds(
                self._socket, wire.MAX_PACKET + 1, wire.MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        for fd in self._fds:
            os.set_inheritable(fd, False)
        if not packet:
            self.close()
            return
        self._busy = True
        self._reactor.modify(self._socket.fileno(), 0)
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(packet) > wire.MAX_PACKET:
                raise ProtocolError("the request is too long")
            request = wire.decode_request(packet, len(self._fds))
            if isinstance(request, (Exec, Attach)):
                self._converse(request, packet)
            elif self._launcher.is_remote and wire.is_about_programs(request):
                self._pass_on(request, packet)
            else:
                request.serve(self._launcher, self._fds, self._answer, self._fail)
        except ClocheError as error:
            self._fail(error)

    def _converse(self, request: Exec | Attach, packet: bytes) -> None:
        """Hand the connection over; what keeps the conversation from beginning is its only answer."""
        connection = self._socket
        if self._launcher.is_remote and isinstance(request, Exec):
            self._launcher.hand_over(packet, self._pid, [connection.fileno(), *self._fds])
            self._busy = False
            self.close()
            return
        self._reactor.unregister(connection.fileno())
        try:
            link = self._server.begin_talk(self, connection, self._pid)
        except ClocheError:
            self._reactor.register(connection.fileno(), 0, self._event)
            raise
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.close()
        begin(request, self._launcher, self._fds, link)
        self._busy = False
        self._close_fds()

    def _pass_on(self, request: Question, packet: bytes) -> None:
        """Have the host program answer; what stops the machine or lets it go on, when no save is under way."""
        if not isinstance(request, (Pause, Resume)):
            self._launcher.ask_programs(packet, self._finish)
            return

        def work(done: Callable[[], None], fail: Fail) -> None:
            del fail

            def answered(said: bytes) -> None:
                done()
                self._finish(said)

            self._launcher.ask_programs(packet, answered)

        self._launcher.in_turn(work, _nothing, self._fail)

    def _answer(self, answer: Message) -> None:
        try:
            packet = wire.encode_answer(answer)
        except ProtocolError as error:
            self._fail(error)
            return
        self._finish(packet)

    def _fail(self, error: ClocheError) -> None:
        self._finish(wire.encode_failure(error))

    def _finish(self, packet: bytes) -> None:
        self._busy = False
        self._close_fds()
        if self._socket.fileno() >= 0:
            self._send(packet)

    def _send(self, packet: bytes) -> None:
        try:
            self._socket.send(packet, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            self._unsent = packet
            self._reactor.modify(self._socket.fileno(), WRITE)
        except OSError:
            self.close()
        else:
            self._unsent = None
            self._reactor.modify(self._socket.fileno(), READ)

    def _close_fds(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


def _nothing() -> None:
    """The client has its answer."""
