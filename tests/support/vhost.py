"""A VMM and a guest kernel as far as a device process sees them: vhost-user, memory, virtqueues; honest or not."""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from cloche.host.tools import require_own_binary

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

#: How long a test waits for an answer before it fails.
PATIENCE_S = 30.0

#: Names the directory for traces of system calls (see ``traced``).
TRACE_VARIABLE = "CLOCHE_TEST_TRACES"

#: Messages of the frontend (docs/interop/vhost-user.rst of QEMU).
GET_FEATURES, SET_FEATURES, SET_OWNER, RESET_OWNER, SET_MEM_TABLE, SET_LOG_BASE = 1, 2, 3, 4, 5, 6
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 12, 13, 14
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE = 15, 16, 17, 18
SET_BACKEND_REQ_FD, GET_CONFIG, SET_CONFIG, GET_INFLIGHT_FD, SET_INFLIGHT_FD, RESET_DEVICE = (
    21,
    24,
    25,
    31,
    32,
    34,
)
GET_MAX_MEM_SLOTS, ADD_MEM_REG, REM_MEM_REG = 36, 37, 38
SET_DEVICE_STATE_FD, CHECK_DEVICE_STATE = 42, 43

#: Bits of SET_PROTOCOL_FEATURES.
P_MQ, P_LOG_SHMFD, P_REPLY_ACK, P_BACKEND_REQ, P_CONFIG = 0, 1, 3, 5, 9
P_INFLIGHT, P_RESET, P_SLOTS, P_STATE = 12, 13, 15, 19

#: Where guest memory starts in the VMM's address space (any number will do).
USER_BASE = 0x7F00_0000_0000
MEMORY = 16 << 20
QUEUE_SIZE = 128
#: Of each queue: descriptors, available ring, used ring; the rest of the memory is free.
QUEUE_BYTES = 0x4000
NEXT, WRITABLE, INDIRECT = 1, 2, 4

VERSION_1 = 1 << 32
EVENT_IDX = 1 << 29
PROTOCOL_FEATURES = 1 << 30
LOG_ALL = 1 << 26


class Descriptor(NamedTuple):
    """One element of a chain."""

    address: int
    length: int
    flags: int
    next: int


class Frontend:
    """A VMM connected to a device process, with 16 MiB of memory for its guest."""

    def __init__(self, connection: socket.socket, queues: int) -> None:
        connection.settimeout(PATIENCE_S)
        self._socket = connection
        self.memory_fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.memory_fd, MEMORY)
        self.memory = mmap.mmap(self.memory_fd, MEMORY)
        self.kicks = [os.eventfd(0) for _ in range(queues)]
        self.calls = [os.eventfd(0) for _ in range(queues)]
        self._next = [0] * queues

    def close(self) -> None:
        """Disconnect, as a VMM that ends does."""
        self._socket.close()
        for fd in (*self.kicks, *self.calls, self.memory_fd):
            os.close(fd)
        self.memory.close()

    # vhost-user

    def send(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), *, flags: int = 1) -> None:
        """Send a message; bit 3 of ``flags`` asks for an acknowledgement."""
        head = struct.pack("<III", request, flags, len(payload))
        socket.send_fds(self._socket, [head + payload], list(fds))

    def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send bytes that need not be a message."""
        socket.send_fds(self._socket, [data], list(fds))

    def receive(self) -> bytes:
        """Receive the payload of an answer; nothing when the device has ended the connection."""
        with suppress(ConnectionResetError):
            head = self._socket.recv(12, socket.MSG_WAITALL)
            if len(head) == 12:
                return self._socket.recv(struct.unpack("<III", head)[2], socket.MSG_WAITALL)
        return b""

    def receive_with_fd(self) -> tuple[bytes, int]:
        """Receive the payload of an answer and the descriptor that comes with it."""
        head, fds, _, _ = socket.recv_fds(self._socket, 12, 1)
        return self._socket.recv(struct.unpack("<III", head)[2], socket.MSG_WAITALL), fds[0]

    def query(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> int:
        """Send a message and return the number it is answered with."""
        self.send(request, payload, fds)
        return int(struct.unpack("<Q", self.receive())[0])

    def shake_hands(
        self, features: int = 0, protocol: int = 0, inflight: tuple[bytes, int] | None = None
    ) -> None:
        """Agree on features, hand over notes on requests in flight, share the memory, and start all queues."""
        self.send(SET_OWNER)
        assert self.query(GET_FEATURES) & features == features
        self.send(SET_FEATURES, struct.pack("<Q", VERSION_1 | PROTOCOL_FEATURES | features))
        self.query(GET_PROTOCOL_FEATURES)
        self.send(SET_PROTOCOL_FEATURES, struct.pack("<Q", protocol))
        if inflight is not None:
            self.send(SET_INFLIGHT_FD, inflight[0], [inflight[1]])
        self.share()
        for queue in range(len(self.kicks)):
            self.start(queue)
        self.query(GET_FEATURES)  # whatever answers: all of it has been taken in

    def go_on(self, connection: socket.socket, features: int = 0) -> None:
        """Connect with the next process, as QEMU when a card's has died: queues go on where they were given back."""
        self._socket = connection
        connection.settimeout(PATIENCE_S)
        self._next = [self.used(queue) for queue in range(len(self.kicks))]
        self.shake_hands(features)

    def share(self) -> None:
        """Share the memory: one region, from address 0 of the guest."""
        region = struct.pack("<IIQQQQ", 1, 0, 0, MEMORY, USER_BASE, 0)
        self.send(SET_MEM_TABLE, region, [self.memory_fd])

    def start(self, queue: int) -> None:
        """Say where a queue is, and start it."""
        base = USER_BASE + queue * QUEUE_BYTES
        self.send(SET_VRING_NUM, struct.pack("<II", queue, QUEUE_SIZE))
        self.send(SET_VRING_BASE, struct.pack("<II", queue, self._next[queue]))
        # Descriptors, used ring, available ring, log.
        self.send(SET_VRING_ADDR, struct.pack("<IIQQQQ", queue, 0, base, base + 0x2000, base + 0x1000, 0))
        self.send(SET_VRING_CALL, struct.pack("<Q", queue), [self.calls[queue]])
        self.send(SET_VRING_KICK, struct.pack("<Q", queue), [self.kicks[queue]])
        self.send(SET_VRING_ENABLE, struct.pack("<II", queue, 1))

    # The queues

    def write_half(self, place: int, value: int) -> None:
        """Write 16 bits at once: ``struct`` writes zeros and then byte after byte, which the device would see."""
        with memoryview(self.memory) as view, view.cast("H") as halves:
            halves[place // 2] = value

    def read_half(self, place: int) -> int:
        """Read 16 bits at once."""
        with memoryview(self.memory) as view, view.cast("H") as halves:
            return halves[place // 2]

    def put_descriptor(self, index: int, descriptor: Descriptor, queue: int) -> None:
        """Write one descriptor into the table."""
        struct.pack_into("<QIHH", self.memory, queue * QUEUE_BYTES + 16 * index, *descriptor)

    def set_available(self, index: int, queue: int) -> None:
        """Write the available ring's index, whatever it is."""
        self.write_half(queue * QUEUE_BYTES + 0x1002, index & 0xFFFF)

    def put_available(self, index: int, head: int, queue: int) -> None:
        """Write one entry of the available ring."""
        struct.pack_into("<H", self.memory, queue * QUEUE_BYTES + 0x1004 + 2 * (index % QUEUE_SIZE), head)

    def kick(self, queue: int) -> None:
        """Tell the device that there is something in the queue."""
        os.eventfd_write(self.kicks[queue], 1)

    def used(self, queue: int) -> int:
        """How many chains the device has given back (modulo 65536)."""
        return self.read_half(queue * QUEUE_BYTES + 0x2002)

    def offer(self, head: int, queue: int) -> None:
        """Make the chain that begins at ``head`` available and tell the device."""
        self.put_available(self._next[queue], head, queue)
        # With EVENT_IDX: say so when this one comes back.
        base = queue * QUEUE_BYTES + 0x1000
        struct.pack_into("<H", self.memory, base + 4 + 2 * QUEUE_SIZE, self._next[queue])
        self._next[queue] = (self._next[queue] + 1) & 0xFFFF
        self.set_available(self._next[queue], queue)
        self.kick(queue)

    def wait(self, queue: int) -> int:
        """Wait until everything offered came back; return how many bytes the last chain got."""
        poll = select.poll()
        poll.register(self.calls[queue], select.POLLIN)
        while self.used(queue) != self._next[queue]:
            assert poll.poll(PATIENCE_S * 1000), "the device does not answer"
            with suppress(BlockingIOError):
                os.eventfd_read(self.calls[queue])
        place = queue * QUEUE_BYTES + 0x2004 + 8 * ((self._next[queue] - 1) % QUEUE_SIZE)
        return int(struct.unpack_from("<II", self.memory, place)[1])


class DeviceProcess(NamedTuple):
    """A running device process and the socket on which its frontend speaks with it."""

    process: subprocess.Popen[bytes]
    connection: socket.socket

    def ended(self) -> tuple[int, str]:
        """Wait until it has ended by itself; return its status and what it said."""
        status = self.process.wait(PATIENCE_S)
        assert self.process.stderr is not None
        return status, self.process.stderr.read().decode()

    def memory_kib(self) -> int:
        """How much memory of its own it holds, in KiB (what it maps of the guest's is not counted); 0 when it ended."""
        if self.process.poll() is not None:
            return 0
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields.get("RssAnon", "0 kB").split()[0])


def traced(program: str) -> list[str]:
    """Return what to start ``program`` with if this is the run that writes down what device processes call."""
    directory = os.environ.get(TRACE_VARIABLE)
    if directory is None:
        return []
    handle, path = tempfile.mkstemp(prefix=f"{program}.", dir=directory)
    os.close(handle)
    # -D: the program stays our child, with the process id we know.
    return ["strace", "-D", "-f", "-qq", "-o", path]


@contextmanager
def device(
    program: str,
    *words: str,
    wrapper: Sequence[str] = (),
    pass_fds: Sequence[int] = (),
    built_in: Path | None = None,
) -> Iterator[DeviceProcess]:
    """Provide a device process that is connected with a socket pair.

    Args:
        program: Its name, or a path.
        words: Its arguments but ``--fd``.
        wrapper: A program, with its arguments, that executes it.
        pass_fds: Descriptors that it has besides its socket.
        built_in: A directory with another build of it.
    """
    if built_in:
        executable = str(built_in / program)
    else:
        executable = program if "/" in program else require_own_binary(program)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        argv = [*wrapper, *traced(program), executable, "--fd", str(theirs.fileno()), *words]
        process = subprocess.Popen(argv, pass_fds=[theirs.fileno(), *pass_fds], stderr=subprocess.PIPE)
        theirs.close()
        try:
            yield DeviceProcess(process, ours)
        finally:
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()
