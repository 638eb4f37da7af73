"""A guest's driver for sockets as far as its device sees it: packets, honest or not (virtio 1.2, 5.10)."""

from __future__ import annotations

import select
import socket
import struct
from contextlib import ExitStack, contextmanager, suppress
from os import eventfd_read
from typing import TYPE_CHECKING, NamedTuple

from support.vhost import (
    PATIENCE_S,
    QUEUE_BYTES,
    QUEUE_SIZE,
    WRITABLE,
    Descriptor,
    DeviceProcess,
    Frontend,
    device,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RECEIVE, SEND = 0, 1
REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST = range(1, 8)
NO_MORE_RECEIVED, NO_MORE_SENT = 1, 2
HOST, GUEST = 2, 3
STREAM = 1
#: What the device keeps of each stream (crates/vsock), and of how many.
ROOM, MOST = 128 << 10, 256
#: Bytes of a packet's header, and of a buffer as Linux gives them.
HEADER = struct.Struct("<QQIIIHHIII")
BUFFER = 4096
BUFFERS = 64
_SENT, _ROOM = 0x10_0000, 0x80_0000


class Packet(NamedTuple):
    """A packet, as the guest sees it: ``host`` and ``guest`` are the ports."""

    host: int
    guest: int
    op: int
    data: bytes = b""
    flags: int = 0
    room: int = 256 << 10
    taken: int = 0


class Guest:
    """A driver with buffers for what it receives."""

    def __init__(self, frontend: Frontend) -> None:
        self.frontend = frontend
        self._seen = 0
        for head in range(BUFFERS):
            self._give(head)

    def _give(self, head: int) -> None:
        self.frontend.put_descriptor(head, Descriptor(_ROOM + head * BUFFER, BUFFER, WRITABLE, 0), RECEIVE)
        self.frontend.offer(head, RECEIVE)

    def say(self, packet: Packet, *, kind: int = STREAM, src: int = GUEST, length: int | None = None) -> None:
        """Send a packet, and wait until the device has taken it."""
        self.offer(packet, kind=kind, src=src, length=length)
        self.frontend.wait(SEND)

    def offer(
        self,
        packet: Packet,
        *,
        head: int = 0,
        kind: int = STREAM,
        src: int = GUEST,
        length: int | None = None,
    ) -> None:
        """Send a packet."""
        size = len(packet.data) if length is None else length
        fields = (
            src,
            HOST,
            packet.guest,
            packet.host,
            size,
            kind,
            packet.op,
            packet.flags,
            packet.room,
            packet.taken,
        )
        whole = HEADER.pack(*fields) + packet.data
        place = _SENT + head * (68 << 10)
        self.frontend.memory[place : place + len(whole)] = whole
        self.frontend.put_descriptor(head, Descriptor(place, len(whole), 0, 0), SEND)
        self.frontend.offer(head, SEND)

    def hear(self) -> Packet:
        """Wait for the next packet, and give its buffer back."""
        poll = select.poll()
        poll.register(self.frontend.calls[RECEIVE], select.POLLIN)
        # With event indexes: say so when the next one comes, and not the last that was offered.
        event = RECEIVE * QUEUE_BYTES + 0x1004 + 2 * QUEUE_SIZE
        self.frontend.write_half(event, self._seen & 0xFFFF)
        while self.frontend.used(RECEIVE) == self._seen & 0xFFFF:
            assert poll.poll(PATIENCE_S * 1000), "nothing is said to the guest"
            with suppress(BlockingIOError):
                eventfd_read(self.frontend.calls[RECEIVE])
        packet = self.peek()
        assert packet is not None
        return packet

    def peek(self) -> Packet | None:
        """Return the next packet if there is one, and give its buffer back."""
        if self.frontend.used(RECEIVE) == self._seen & 0xFFFF:
            return None
        place = RECEIVE * QUEUE_BYTES + 0x2004 + 8 * (self._seen % QUEUE_SIZE)
        head, length = struct.unpack_from("<II", self.frontend.memory, place)
        self._seen += 1
        start = _ROOM + head * BUFFER
        whole = bytes(self.frontend.memory[start : start + length])
        src, dst, host, guest, size, kind, op, flags, room, taken = HEADER.unpack_from(whole)
        assert (src, dst, size) == (HOST, GUEST, length - HEADER.size)
        assert kind == STREAM or op == RST
        self._give(head)
        return Packet(host, guest, op, whole[HEADER.size :], flags, room, taken)


class Machine(NamedTuple):
    """A device with its guest, the path at which programs of the host connect, and the supervisor's end."""

    running: DeviceProcess
    guest: Guest
    path: Path
    supervisor: socket.socket

    def knock(self, line: bytes = b"CONNECT 1234\n") -> socket.socket:
        """Connect as a program of the host does."""
        program = socket.socket(socket.AF_UNIX)
        program.settimeout(PATIENCE_S)
        program.connect(str(self.path))
        program.sendall(line)
        return program

    def asked(self) -> int:
        """Wait for a question to the supervisor; return the port."""
        return int.from_bytes(self.supervisor.recv(4, socket.MSG_WAITALL), "little")

    def answer(self, stream: socket.socket | None) -> None:
        """Answer it: with a stream, or that nobody listens."""
        if stream is None:
            self.supervisor.send(b"\0")
        else:
            socket.send_fds(self.supervisor, [b"\1"], [stream.fileno()])

    def connect(self, guest: int, host: int = 80) -> socket.socket:
        """Have a program of the guest connect to a program of the host; return the latter's end."""
        self.guest.say(Packet(host, guest, REQUEST))
        assert self.asked() == host
        ours, theirs = socket.socketpair()
        ours.settimeout(PATIENCE_S)
        theirs.setblocking(False)
        with theirs:
            self.answer(theirs)
        accepted = self.guest.hear()
        assert accepted[:3] == (host, guest, RESPONSE)
        return ours


@contextmanager
def machine(folder: Path, *, features: int = 0, built_in: Path | None = None) -> Iterator[Machine]:
    """Provide a device with an honest guest; the process must end with its frontend, with status 0."""
    with ExitStack() as stack:
        door, ours, theirs = (
            stack.enter_context(one) for one in (socket.socket(socket.AF_UNIX), *socket.socketpair())
        )
        ours.settimeout(PATIENCE_S)
        path = folder / "vsock"
        door.bind(str(path))
        door.listen(MOST)
        fds = (door.fileno(), theirs.fileno())
        words = ("--listen-fd", str(fds[0]), "--ask-fd", str(fds[1]), "--cid", str(GUEST))
        running = stack.enter_context(device("cloche-vsock", *words, pass_fds=fds, built_in=built_in))
        theirs.close()
        frontend = Frontend(running.connection, 2)
        frontend.shake_hands(features)
        yield Machine(running, Guest(frontend), path, ours)
        frontend.close()
        status, said = running.ended()
        assert status == 0, said
