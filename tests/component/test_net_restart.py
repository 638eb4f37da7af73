"""The network front dies again and again in the middle of traffic: its next process and a guest's driver go on.

The driver is one as Linux's: it kicks and waits exactly where event indexes say so, so that one lost call, or one kick
that nobody looked for, is a queue that stands still for good.
"""

from __future__ import annotations

import os
import random
import select
import socket
import struct
import threading

from support import vhost
from support.frames import echo
from support.vhost import EVENT_IDX, PATIENCE_S, QUEUE_BYTES, QUEUE_SIZE, WRITABLE, Descriptor, Frontend

RECEIVE, SEND = 0, 1
DEVICE = ("cloche-net", "--mac", "02:00:00:00:00:01", "--peer-fd")
OWN, OTHER = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
FRAME = (OTHER + OWN + b"\x88\xb5").ljust(200, b"x")
#: Buffers of each direction, and where they are in the guest.
WINDOW, PLACES = 64, (0x20_0000, 0x10_0000)
LIVES, FRAMES = 60, 100


_LOCK = threading.Lock()


def barrier() -> None:
    """Let what was written be seen before anything is read: what two sides tell each other is lost without it."""
    with _LOCK:
        pass


class Driver:
    """A guest's driver of a network card, that is told of nothing but by its queues and calls."""

    def __init__(self, frontend: Frontend) -> None:
        self.frontend = frontend
        #: Of each queue: what was made available, what was seen to be given back.
        self.offered, self.seen = [0, 0], [0, 0]
        for queue in (RECEIVE, SEND):
            for head in range(WINDOW):
                place = PLACES[queue] + head * 0x1000
                length, flags = (1530, WRITABLE) if queue == RECEIVE else (12 + len(FRAME), 0)
                frontend.memory[place + 12 : place + 12 + len(FRAME)] = FRAME
                frontend.put_descriptor(head, Descriptor(place, length, flags, 0), queue)
                self.offer(queue, head)
            self.want_calls(queue)

    def offer(self, queue: int, head: int) -> None:
        """Offer a buffer, and kick if the device has asked for it (virtio 1.2, 2.7.10)."""
        frontend, old = self.frontend, self.offered[queue]
        new = self.offered[queue] = (old + 1) & 0xFFFF
        frontend.put_available(old, head, queue)
        frontend.set_available(new, queue)
        barrier()
        event = frontend.read_half(queue * QUEUE_BYTES + 0x2004 + 8 * QUEUE_SIZE)
        if (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF:
            frontend.kick(queue)

    def want_calls(self, queue: int) -> bool:
        """Ask for a call at the next buffer that is given back; return whether there is one already."""
        place = queue * QUEUE_BYTES + 0x1004 + 2 * QUEUE_SIZE
        self.frontend.write_half(place, self.seen[queue])
        barrier()
        return self.frontend.used(queue) != self.seen[queue]

    def collect(self, queue: int) -> int:
        """Take what was given back and offer it again, until a call is sure to come for the next; return how many."""
        count = 0
        while self.want_calls(queue):
            place = queue * QUEUE_BYTES + 0x2004 + 8 * (self.seen[queue] % QUEUE_SIZE)
            (head,) = struct.unpack_from("<I", self.frontend.memory, place)
            self.seen[queue] = (self.seen[queue] + 1) & 0xFFFF
            self.offer(queue, head)
            count += 1
        return count

    def work(self, wanted: int) -> None:
        """Go on until so many frames have come and gone; a queue is looked at when there is a call for it alone."""
        done = [0, 0]
        poll = select.poll()
        for call in self.frontend.calls:
            poll.register(call, select.POLLIN)
        while min(done) < wanted:
            ready = poll.poll(PATIENCE_S * 1000)
            assert ready, f"both queues stand still: {done}"
            for call, _ in ready:
                queue = self.frontend.calls.index(call)
                os.eventfd_read(call)
                done[queue] += self.collect(queue)
            assert max(done) < 1000 * wanted, f"a queue stands still: {done}"


def test_no_death_makes_a_queue_stand_still() -> None:
    """Whenever the process is killed: the next one goes on with both queues, without anything that would wake them."""
    first, nobody = socket.socketpair()
    with first, nobody:
        frontend = Frontend(first, 2)
    driver = Driver(frontend)
    pick = random.Random()
    for _ in range(LIVES):
        with echo() as peer, vhost.device(*DEVICE, str(peer), pass_fds=[peer]) as running:
            frontend.go_on(running.connection, EVENT_IDX)
            driver.work(FRAMES)
            for _ in range(pick.randrange(200)):
                driver.collect(pick.randrange(2))
            running.process.kill()
            running.process.wait()
    frontend.close()
