"""The two ends of a stream as the host keeps them (layer 3, pure state).

``protocol/README.md`` section 3. ``Sender`` holds what the agent has not acknowledged, ``Receiver`` what the final
reader has not taken; each at most one window. Only ``cloche.guest.mux`` changes them; others read the attributes.
"""

from __future__ import annotations

from collections import deque

from cloche.errors import ProtocolError
from cloche.guest import wire
from cloche.guest.channel import ReceiverState, SenderState

#: Chunks below this are gathered, so that single bytes do not cost an object and a frame each.
_SMALL = 4096


class Sender:
    """The host's end of an even stream.

    Attributes:
        stream: Id.
        acked: Offset below which the agent's reader is done.
        sent: Offset up to which frames were made in this byte stream.
        next: Offset of the next byte ``write`` takes.
        limit: Offset the agent lets us send up to.
        known: The agent has shown that it knows the stream: before that an EOF could be lost (see ``wants_eof``).
        ended: No more is written; EOF is sent or to be sent.
        aborted: That EOF carries ABORTED.
        stopped: The agent's reader is gone.
        finished: The stream is forgotten.
    """

    __slots__ = (
        "_held",
        "_held_base",
        "_unsent",
        "aborted",
        "acked",
        "ended",
        "eof_ever_sent",
        "eof_sent",
        "finished",
        "known",
        "limit",
        "next",
        "queued",
        "sent",
        "stopped",
        "stream",
    )

    def __init__(self, stream: int, limit: int) -> None:
        self.stream = stream
        self.acked = self.sent = self.next = 0
        self.limit = limit
        self.known = self.ended = self.aborted = self.stopped = self.finished = False
        self.eof_sent = False  # in this byte stream
        self.eof_ever_sent = False
        self.queued = False  # stands in the mux's queue of streams that have something to send
        # Whole chunks, never one growing buffer: acknowledging drops from the left without moving memory.
        self._held: deque[bytes] = deque()  # framed, from _held_base to sent
        self._held_base = 0
        self._unsent: deque[bytes | bytearray] = deque()  # from sent to next; a bytearray can still grow

    def export(self) -> SenderState:
        """Return all that it would take to go on with the stream."""
        data = b"".join((*self._held, *self._unsent))[max(self.acked - self._held_base, 0) :]
        return SenderState(
            self.stream,
            self.acked,
            self.next,
            self.limit,
            data,
            self.known,
            self.ended,
            self.aborted,
            self.stopped,
            self.eof_ever_sent,
        )

    @classmethod
    def restored(cls, state: SenderState) -> Sender:
        """Go on with a stream; everything counts as sent, until the agent says what it has."""
        sender = cls(state.stream, state.limit)
        sender.acked = state.acked
        sender.sent = sender.next = state.next
        sender._held_base = state.next - len(state.data)
        # As large as a frame may be: they are sent again as they are here.
        for start in range(0, len(state.data), wire.MAX_DATA):
            sender._held.append(state.data[start : start + wire.MAX_DATA])
        sender.known, sender.ended, sender.aborted = state.known, state.ended, state.aborted
        sender.stopped, sender.eof_ever_sent = state.stopped, state.eof_sent
        return sender

    @property
    def credit(self) -> int:
        """How many bytes ``write`` would take now."""
        return 0 if self.ended or self.stopped else self.limit - self.next

    @property
    def wants_eof(self) -> bool:
        """Whether EOF is to be sent now.

        Held back until the agent has named the stream: EXEC may still wait for credit on stream 0 while EOF needs
        none, and the agent ignores frames for streams it does not know yet.
        """
        return self.ended and self.known and not self.eof_sent and not self._unsent

    @property
    def pending(self) -> bool:
        """Whether there is anything to send."""
        return bool(self._unsent) or self.wants_eof

    def write(self, data: bytes | memoryview) -> int:
        """Take at most the free credit of ``data``; returns how much."""
        room = min(len(data), self.credit)
        if room == len(data) and room <= wire.MAX_DATA and isinstance(data, bytes):
            self._append(data)
        else:
            view = memoryview(data)
            for start in range(0, room, wire.MAX_DATA):
                self._append(bytes(view[start : min(room, start + wire.MAX_DATA)]))
        self.next += room
        return room

    def _append(self, piece: bytes) -> None:
        if not piece:
            return
        if self._unsent and len(piece) < _SMALL:
            tail = self._unsent[-1]
            if isinstance(tail, bytearray) and len(tail) + len(piece) <= wire.MAX_DATA:
                tail += piece
            else:
                self._unsent.append(bytearray(piece))
        else:
            self._unsent.append(piece)

    def frame(self, out: list[bytes]) -> int:
        """Append the pieces of the next frame to ``out``; returns its size, 0 when there is none."""
        if not self._unsent:
            if not self.wants_eof:
                return 0
            self.eof_sent = self.eof_ever_sent = True
            out.append(wire.eof_frame(self.stream, self.next, aborted=self.aborted))
            return len(out[-1])
        chunk = bytes(self._unsent.popleft())  # no copy when it is bytes already
        size = len(chunk)
        head = wire.data_header(self.stream, self.sent, size)
        if size < _SMALL:
            out.append(head + chunk + wire.TRAILER)
        else:
            out += (head, chunk, wire.TRAILER)
        self._held.append(chunk)
        self.sent += size
        return len(head) + size + 1

    def acknowledge(self, consumed: int, limit: int) -> None:
        """Handle the offsets of a WINDOW frame. Raises ProtocolError when they are impossible."""
        if not self.acked <= consumed <= self.sent:
            raise ProtocolError(f"a WINDOW for stream {self.stream} acknowledges what was never sent")
        if not self.limit <= limit <= consumed + wire.WINDOW_SIZE:
            raise ProtocolError(f"a WINDOW for stream {self.stream} has an impossible limit")
        self.limit = limit
        self.known = True
        self._drop(consumed)

    def _drop(self, consumed: int) -> None:
        self.acked = consumed
        while self._held and self._held_base + len(self._held[0]) <= consumed:
            self._held_base += len(self._held.popleft())

    def discard(self) -> None:
        """The reader is gone: drop everything and end with ABORTED (unless the EOF is out already)."""
        self.stopped = self.ended = self.aborted = True
        self.clear()

    def clear(self) -> None:
        """Let go of every byte."""
        self._unsent.clear()
        self._held.clear()
        self.sent = self._held_base = self.next

    def detach(self) -> None:
        """The byte stream is gone, and whatever of it was not delivered."""
        self.eof_sent = False
        self.queued = False

    def reattach(self, row: wire.TableRow) -> None:
        """Go back to what the agent says it has. Raises ProtocolError when that is impossible."""
        if not self.acked <= row.consumed <= row.received <= self.sent:
            raise ProtocolError(f"the agent's table has impossible offsets for stream {self.stream}")
        if row.limit > row.consumed + wire.WINDOW_SIZE:
            raise ProtocolError(f"the agent's table has an impossible limit for stream {self.stream}")
        self.known = True
        self.limit = max(self.limit, row.limit)
        if self.stopped:
            self.acked = row.consumed
            return
        self._drop(row.consumed)
        self._rewind(row.received)

    def _rewind(self, received: int) -> None:
        end = self.sent
        while end > received:
            chunk = self._held.pop()
            end -= len(chunk)
            keep = received - end
            if keep > 0:
                self._held.append(chunk[:keep])
                chunk = chunk[keep:]
            self._unsent.appendleft(chunk)
        self.sent = received


class Receiver:
    """The host's end of an odd stream.

    Attributes:
        stream: Id.
        received: Offset of the next byte expected.
        consumed: Offset up to which the reader took the bytes.
        limit: Highest offset granted to the agent.
        final: Where the stream ends, once known.
        aborted: The writer gave up.
        known: The agent is known to have the stream: before that a STOP could be lost.
        stopped: The host's reader is gone; what still comes is counted and thrown away.
        finished: Everything was delivered, or the stream was forgotten.
    """

    __slots__ = (
        "_queue",
        "aborted",
        "consumed",
        "final",
        "finished",
        "granted",
        "known",
        "limit",
        "received",
        "stopped",
        "stream",
    )

    def __init__(self, stream: int) -> None:
        self.stream = stream
        self.received = self.consumed = self.granted = 0
        self.limit = wire.WINDOW_SIZE
        self.final: int | None = None
        self.aborted = self.known = self.stopped = self.finished = False
        self._queue: deque[bytes | bytearray | memoryview] = deque()

    def export(self) -> ReceiverState:
        """Return all that it would take to go on with the stream."""
        data = b"".join(self._queue)
        return ReceiverState(self.stream, self.consumed, self.limit, data, self.known, self.stopped)

    @classmethod
    def restored(cls, state: ReceiverState) -> Receiver:
        """Go on with a stream."""
        receiver = cls(state.stream)
        receiver.consumed = receiver.granted = state.consumed
        receiver.received = state.consumed + len(state.data)
        receiver.limit = state.limit
        receiver.known, receiver.stopped = state.known, state.stopped
        if state.data:
            receiver._queue.append(state.data)
        return receiver

    def data(self, offset: int, payload: memoryview) -> None:
        """Take a DATA frame. Raises ProtocolError when it does not continue the stream or passes the limit."""
        size = len(payload)
        if offset != self.received:
            raise ProtocolError(f"stream {self.stream} continues at {offset} instead of {self.received}")
        if self.final is not None:
            raise ProtocolError(f"stream {self.stream} continues after its end")
        if offset + size > self.limit:
            raise ProtocolError(f"stream {self.stream} passes its limit")
        self.received += size
        self.known = True
        if self.stopped:
            self.consumed += size
            return
        queue = self._queue
        if size < _SMALL and queue:
            tail = queue[-1]
            if isinstance(tail, bytearray) and len(tail) < wire.MAX_DATA:
                tail += payload
            else:
                queue.append(bytearray(payload))
        else:
            queue.append(payload.tobytes())

    def end(self, final: int, *, aborted: bool) -> None:
        """Take an EOF frame. Raises ProtocolError when it contradicts what is known."""
        if aborted:
            # What was dropped on the way (after STOP, or by a broken source) counts as received.
            if final < self.received or final >= 1 << 63:
                raise ProtocolError(f"stream {self.stream} is aborted at an impossible offset")
        elif final != self.received:
            raise ProtocolError(f"stream {self.stream} ends at {final} instead of {self.received}")
        self.known = True
        self.aborted = aborted
        self.final = self.received = final

    @property
    def ended(self) -> bool:
        """Whether the end is known and nothing is left to take."""
        return self.final is not None and not self._queue

    def peek(self) -> bytes | memoryview:
        """The next bytes to take, ``b""`` when there are none now."""
        if not self._queue:
            return b""
        head = self._queue[0]
        if isinstance(head, bytearray):
            head = self._queue[0] = bytes(head)  # it must not grow while somebody holds it
        return head

    def take(self, count: int) -> None:
        """The first ``count`` bytes of ``peek()`` were delivered."""
        head = self._queue[0]
        if count < len(head):
            self._queue[0] = memoryview(head)[count:]
        else:
            self._queue.popleft()
        self.consumed += count

    def pull(self) -> bytes | memoryview:
        """Take the next bytes out without counting them as consumed; the caller adds to ``consumed`` later."""
        head = self.peek()
        self._queue.clear()
        return head

    def discard(self) -> None:
        """The reader is gone: drop what waits and whatever still comes."""
        self.stopped = True
        for chunk in self._queue:
            self.consumed += len(chunk)
        self._queue.clear()

    def grant(self) -> bool:
        """Whether a WINDOW is due; if so it counts as sent."""
        if self.consumed - self.granted < wire.WINDOW_SIZE // 4:
            return False
        self.renew()
        return True

    def renew(self) -> None:
        """Open the window as far as it goes."""
        self.granted = self.consumed
        self.limit = max(self.limit, self.consumed + wire.WINDOW_SIZE)

    def reattach(self) -> wire.TableRow:
        """What an ATTACH says of this stream.

        An end that was known is forgotten: the agent tells it again for every stream that is listed, and a stream
        finished before that would be unknown when it comes.
        """
        self.final = None
        self.aborted = False
        self.renew()
        return wire.TableRow(self.stream, self.received, self.consumed, self.limit)
