"""The network front's process with an honest frontend: frames, its log of written pages, both ends, its options."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest

from support import vhost
from support.frames import receive_frame, spoken
from support.vhost import EVENT_IDX, NEXT, PATIENCE_S, WRITABLE, Descriptor, DeviceProcess, Frontend

if TYPE_CHECKING:
    from collections.abc import Iterator

RECEIVE, SEND = 0, 1
MAC = "02:00:00:00:00:01"
OWN, OTHER = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
#: Where what is sent, and room for what is received, is in the guest.
SENT, ROOM = 0x10_0000, 0x20_0000
HEADER = bytes(12)


class Machine(NamedTuple):
    """A front with its frontend and its peer."""

    running: DeviceProcess
    frontend: Frontend
    peer: socket.socket

    def send(self, frame: bytes, head: int = 0) -> None:
        """Offer a frame as the guest does that sends it."""
        place = SENT + head * 0x1000
        self.frontend.memory[place : place + len(HEADER + frame)] = HEADER + frame
        self.frontend.put_descriptor(head, Descriptor(place, len(HEADER + frame), 0, 0), SEND)
        self.frontend.offer(head, SEND)

    def make_room(self, head: int = 0, length: int = 1530) -> None:
        """Offer a buffer as the guest does that wants to receive."""
        self.frontend.put_descriptor(head, Descriptor(ROOM + head * 0x1000, length, WRITABLE, 0), RECEIVE)
        self.frontend.offer(head, RECEIVE)

    def received(self, head: int = 0) -> bytes:
        """Wait for what was offered, and return the frame in the last buffer."""
        length = self.frontend.wait(RECEIVE)
        place = ROOM + head * 0x1000
        assert self.frontend.memory[place : place + 12] == bytes(10) + b"\1\0"
        return self.frontend.memory[place + 12 : place + length]


@contextmanager
def front(peer_fd: int | None, *words: str) -> Iterator[DeviceProcess]:
    """Provide the front's process, with a peer or without one."""
    fds = () if peer_fd is None else (peer_fd,)
    given = [word for fd in fds for word in ("--peer-fd", str(fd))]
    with vhost.device("cloche-net", "--mac", MAC, *given, *words, pass_fds=fds) as running:
        yield running


@contextmanager
def machine(*words: str, features: int = 0, protocol: int = 0, ends: int = 0) -> Iterator[Machine]:
    """Provide a front with both sides; it must end with this status, by its frontend's end if not before."""
    peer, theirs = socket.socketpair()
    peer.settimeout(PATIENCE_S)
    with peer, front(theirs.fileno(), *words) as running:
        theirs.close()
        frontend = Frontend(running.connection, 2)
        frontend.shake_hands(features, protocol)
        yield Machine(running, frontend, peer)
        frontend.close()
        assert running.process.wait(PATIENCE_S) == ends


def frame(to: bytes, source: bytes, text: bytes = b"", length: int = 60) -> bytes:
    """Return a frame."""
    return (to + source + b"\x88\xb5" + text).ljust(length, b"\0")


@pytest.mark.parametrize("features", [0, EVENT_IDX])
def test_frames_go_both_ways(features: int) -> None:
    """What the guest sends comes out in front of its length, and what comes in lies behind a header in its buffer."""
    with machine(features=features) as made:
        for length in (14, 60, 1514, 1518):
            sent = frame(OTHER, OWN, b"out", length)[:length]
            made.send(sent)
            made.frontend.wait(SEND)
            assert receive_frame(made.peer) == sent
            made.make_room()
            made.peer.sendall(spoken(sent[6:12] + sent[:6] + sent[12:]))
            assert made.received() == sent[6:12] + sent[:6] + sent[12:]


def test_the_length_of_frames_follows_the_mtu() -> None:
    """A link for larger frames carries them, and one for smaller ones does not."""
    large = frame(OTHER, OWN, b"large", 9014)
    with machine("--mtu", "9000") as made:
        made.frontend.memory[SENT : SENT + 12 + 9014] = HEADER + large
        # In two parts, neither of which is header or frame alone.
        made.frontend.put_descriptor(0, Descriptor(SENT, 5000, NEXT, 1), SEND)
        made.frontend.put_descriptor(1, Descriptor(SENT + 5000, 12 + 9014 - 5000, 0, 0), SEND)
        made.frontend.offer(0, SEND)
        made.frontend.wait(SEND)
        assert receive_frame(made.peer) == large
    with machine("--mtu", "100") as made:
        made.send(frame(OTHER, OWN, b"large", 119))
        made.send(frame(OTHER, OWN, b"small", 118), 1)
        assert receive_frame(made.peer)[14:].startswith(b"small")


def test_what_is_wrong_goes_nowhere() -> None:
    """Another's address, a wish for checksums and too much of everything are dropped; the next frame is not."""
    good = frame(OTHER, OWN, b"good")
    with machine() as made:
        made.send(frame(OTHER, OTHER, b"another's"), 0)
        made.send(frame(OTHER, OWN, b"long", 1519), 1)
        made.send(frame(OTHER, OWN, b"checksum, please"), 2)
        made.frontend.memory[SENT + 0x2000] = 1
        made.frontend.kick(SEND)
        made.frontend.wait(SEND)
        made.send(good, 3)
        got = receive_frame(made.peer)
        while got != good:
            # The third may have been taken before it was spoilt.
            assert got == frame(OTHER, OWN, b"checksum, please")
            got = receive_frame(made.peer)
        made.make_room()
        for one in (frame(OTHER, OTHER), frame(OWN, OTHER, b"long", 1519), frame(OWN, OTHER, b"in")):
            made.peer.sendall(spoken(one))
        assert made.received()[14:].startswith(b"in")


def test_what_is_written_into_the_guest_is_logged() -> None:
    """With the log on, the pages of a received frame and of the used ring are marked."""
    with machine(protocol=1 << vhost.P_LOG_SHMFD) as made:
        log = os.memfd_create("log")
        os.ftruncate(log, 4096)
        made.frontend.send(vhost.SET_LOG_BASE, struct.pack("<QQ", 4096, 0), [log])
        made.frontend.receive()
        features = vhost.VERSION_1 | vhost.PROTOCOL_FEATURES | vhost.LOG_ALL
        made.frontend.send(vhost.SET_FEATURES, struct.pack("<Q", features))
        made.frontend.query(vhost.GET_FEATURES)
        made.make_room()
        made.peer.sendall(spoken(frame(OWN, OTHER)))
        made.received()
        made.frontend.query(vhost.GET_FEATURES)
        bits = int.from_bytes(os.pread(log, 4096, 0), "little")
        assert [page for page in range(4096 * 8) if bits >> page & 1] == [2, ROOM >> 12]
        os.close(log)


def test_the_next_frontend_goes_on_where_the_last_one_left() -> None:
    """A front that is connected with anew goes on with queues that others have used, and tells the guest to look."""
    peer, theirs = socket.socketpair()
    peer.settimeout(PATIENCE_S)
    with peer, theirs, front(theirs.fileno()) as running:
        first = Machine(running, Frontend(running.connection, 2), peer)
        first.frontend.shake_hands(EVENT_IDX)
        first.send(frame(OTHER, OWN))
        first.frontend.wait(SEND)
        assert receive_frame(peer)
        first.frontend.send(vhost.GET_VRING_BASE, struct.pack("<II", SEND, 0))
        assert struct.unpack("<II", first.frontend.receive()) == (SEND, 1)
        first.frontend.start(SEND)
        # Nothing was given back since, but somebody may have died in between: the guest is told to look.
        assert select.select([first.frontend.calls[SEND]], [], [], PATIENCE_S)[0]
        first.send(frame(OTHER, OWN, b"next"), 1)
        assert receive_frame(peer)[14:].startswith(b"next")
        first.frontend.close()


def test_queues_may_be_enabled_too_early() -> None:
    """QEMU enables the queues of a card before it says which features it takes, and waits for the answer."""
    with front(None) as running:
        frontend = Frontend(running.connection, 2)
        frontend.send(vhost.SET_VRING_ENABLE, struct.pack("<II", 1, 1))
        frontend.send(vhost.SET_VRING_ENABLE, struct.pack("<II", 0, 1), flags=9)
        assert frontend.receive() == bytes(8)
        frontend.send(vhost.SET_VRING_ENABLE, struct.pack("<II", 2, 1), flags=9)
        assert struct.unpack("<Q", frontend.receive()) != (0,)
        assert frontend.query(vhost.GET_FEATURES)
        frontend.close()
        assert running.ended() == (0, "")


def test_without_a_peer_frames_are_dropped() -> None:
    """A front without a peer gives the guest its buffers back and goes on."""
    with front(None) as running:
        made = Machine(running, Frontend(running.connection, 2), running.connection)
        made.frontend.shake_hands()
        for _ in range(200):
            made.send(frame(OTHER, OWN))
            made.frontend.wait(SEND)
        made.frontend.close()
        assert running.process.wait(PATIENCE_S) == 0


def test_a_peer_that_hangs_up_ends_the_front() -> None:
    """The front ends with a status of its own, after what had come was given to the guest."""
    with machine(ends=5) as made:
        made.make_room()
        made.peer.sendall(spoken(frame(OWN, OTHER, b"last")))
        assert made.received()[14:].startswith(b"last")
        made.peer.close()
        assert made.running.ended() == (5, "cloche-net: whoever it was connected with has gone\n")


@pytest.mark.parametrize("length", [0, 13, 69633, 0xFFFFFFFF])
def test_a_length_that_lies_ends_the_front(length: int) -> None:
    """What announces a frame that nobody sends is no stream of frames: the front says so and ends."""
    with machine(ends=1) as made:
        made.peer.sendall(struct.pack(">I", length))
        said = f"cloche-net: the peer announced a frame of {length} bytes\n"
        assert made.running.ended() == (1, said)


def test_half_a_frame_waits_for_the_other_half() -> None:
    """Frames come whole, however the stream was cut."""
    with machine() as made:
        made.make_room()
        stream = spoken(frame(OWN, OTHER, b"cut"))
        for byte in stream[:10]:
            made.peer.sendall(bytes([byte]))
        made.frontend.query(vhost.GET_FEATURES)
        assert made.frontend.used(RECEIVE) == 0
        made.peer.sendall(stream[10:])
        assert made.received()[14:].startswith(b"cut")


def test_a_peer_that_does_not_read_costs_nothing() -> None:
    """What nobody reads stays with the guest: the process neither grows nor runs, and nothing is lost."""
    with machine() as made:
        before = made.running.memory_kib()
        sent = 0
        poll = select.poll()
        poll.register(made.frontend.calls[SEND], select.POLLIN)
        while made.frontend.used(SEND) == sent & 0xFFFF:
            made.send(frame(OTHER, OWN, struct.pack("<I", sent), 1514), sent % vhost.QUEUE_SIZE)
            sent += 1
            if not poll.poll(2000):
                break
            os.eventfd_read(made.frontend.calls[SEND])
        assert made.running.memory_kib() <= before + 256
        ticks = cpu_ticks(made.running.process.pid)
        for _ in range(1000):
            made.frontend.kick(SEND)
        made.frontend.query(vhost.GET_FEATURES)
        assert cpu_ticks(made.running.process.pid) - ticks < 100
        for number in range(sent):
            assert receive_frame(made.peer)[14:18] == struct.pack("<I", number)


def cpu_ticks(pid: int) -> int:
    """Return the processor time of a process, in clock ticks."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_signal_ends_the_front() -> None:
    """SIGTERM is an end in order."""
    with front(None) as running:
        frontend = Frontend(running.connection, 2)
        frontend.query(vhost.GET_FEATURES)
        running.process.send_signal(signal.SIGTERM)
        assert running.ended() == (0, "")
        frontend.close()


@pytest.mark.parametrize(
    "words, said",
    [
        ((), "--mac is required"),
        (("--mac", "03:00:00:00:00:01"), "--mac does not take"),
        (("--mac", MAC, "--mtu", "67"), "--mtu does not take"),
        (("--mac", MAC, "--mtu", "9217"), "--mtu does not take"),
        (("--mac", MAC, "--bridge"), "unknown option"),
    ],
)
def test_wrong_options_are_named(words: tuple[str, ...], said: str) -> None:
    """A wrong command line ends with status 2 and a sentence."""
    with vhost.device("cloche-net", *words) as running:
        status, text = running.ended()
        assert status == 2
        assert said in text


def test_a_peer_that_is_no_connection_is_refused() -> None:
    """A file or a listening socket in the place of the peer cannot be used, and the front says so."""
    with socket.socket(socket.AF_UNIX) as listening, open(os.devnull, "rb") as file:
        listening.bind("")
        listening.listen()
        for fd in (listening.fileno(), file.fileno()):
            with front(fd) as running:
                status, text = running.ended()
                assert status == 4
                assert "--peer-fd names no connected Unix stream socket" in text
