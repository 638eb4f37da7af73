"""The host's role in the channel, without I/O (layer 3).

``protocol/README.md`` sections 3 and 4: many streams over one byte stream that may be cut and made anew. Bytes go in
by ``receive`` and come out by ``data_to_send``; ``cloche.guest.session`` moves them. The peer is a guest and counts
as hostile: whatever it must not say raises ProtocolError, and nothing it says makes more than a window per stream
stay in memory.
"""

from __future__ import annotations

import os
from collections import deque

from cloche.errors import ProtocolError
from cloche.guest import wire
from cloche.guest.channel import MuxState
from cloche.guest.messages import MAX_TO_HOST
from cloche.guest.streams import Receiver, Sender

#: About how much ``data_to_send`` returns at a time: enough to fill a socket, little enough to stay fair.
_SEND_BUDGET = 262144
_SEND_PIECES = 512  # sendmsg takes 1024 buffers
#: Far more than sockets and queues can hold of an earlier byte stream: who sends this is not going to answer.
_MOST_JUNK = 16 << 20

DETACHED = "detached"
ATTACHING = "attaching"
ATTACHED = "attached"


class Mux:
    """One connection to one agent, over any number of byte streams one after another.

    Attributes:
        state: DETACHED, ATTACHING (waiting for the agent's answer) or ATTACHED.
        session: The agent's session key, once it has attached.
        attached_count: How often an attach succeeded.
    """

    def __init__(self) -> None:
        self.state = DETACHED
        self.session: bytes | None = None
        self.attached_count = 0
        self._nonce = b""
        self._partial = bytearray()
        self._found = False  # the preface of the attach under way was seen
        self._junk = 0  # bytes that came before it
        self._next_even = 2
        self._next_odd = 3
        self._control_out = Sender(0, wire.WINDOW_SIZE)
        self._control_out.known = True
        self._control_in = Receiver(1)
        self._control_bytes = bytearray()
        self._senders: dict[int, Sender] = {0: self._control_out}
        self._receivers: dict[int, Receiver] = {1: self._control_in}
        self._backlog: deque[bytes | memoryview] = deque()
        self._first: list[bytes] = []  # preface and ATTACH
        self._windows: dict[int, bytes] = {}  # the newest WINDOW frame of each stream
        self._stops: dict[int, bytes] = {}
        self._ready: deque[Sender] = deque()
        self._touched: dict[Sender | Receiver, None] = {}

    # A machine that is saved

    def export(self) -> MuxState:
        """Return all that it would take to go on with every stream. The agent must have attached."""
        control = self._control_in.export()._replace(data=bytes(self._control_bytes))
        return MuxState(
            self.session or b"",
            self._next_even,
            self._next_odd,
            tuple(sender.export() for sender in self._senders.values()),
            (
                control,
                *(one.export() for one in self._receivers.values() if one is not self._control_in),
            ),
            b"".join(self._backlog),
        )

    @classmethod
    def restored(cls, state: MuxState) -> Mux:
        """Go on with what was exported."""
        mux = cls()
        mux.session = state.session
        mux._next_even, mux._next_odd = state.next_even, state.next_odd
        mux._senders = {one.stream: Sender.restored(one) for one in state.senders}
        control, *others = state.receivers
        mux._receivers = {one.stream: Receiver.restored(one) for one in (control._replace(data=b""), *others)}
        mux._control_out, mux._control_in = mux._senders[0], mux._receivers[1]
        mux._control_in.received += len(control.data)
        mux._control_bytes += control.data
        if state.backlog:
            mux._backlog.append(state.backlog)
        return mux

    def sender(self, stream: int) -> Sender | None:
        """Return a stream to the agent by its id, unless it is forgotten."""
        return self._senders.get(stream)

    def receiver(self, stream: int) -> Receiver | None:
        """Return a stream from the agent by its id, unless it is forgotten."""
        return self._receivers.get(stream)

    # Streams

    def open_sender(self) -> Sender:
        """A new stream to the agent; make its id known by EXEC."""
        sender = Sender(self._next_even, 0)
        self._next_even += 2
        self._senders[sender.stream] = sender
        return sender

    def open_receiver(self) -> Receiver:
        """A new stream to the host; make its id known by EXEC."""
        receiver = Receiver(self._next_odd)
        self._next_odd += 2
        self._receivers[receiver.stream] = receiver
        return receiver

    def write(self, sender: Sender, data: bytes | memoryview) -> int:
        """Take at most the free credit of ``data``; returns how much (0: stop reading the source)."""
        taken = sender.write(data)
        self._queue(sender)
        return taken

    def end(self, sender: Sender, *, aborted: bool = False) -> None:
        """The source ended; with ``aborted``, because it broke. Harmless when repeated."""
        if not sender.ended and not sender.finished:
            sender.ended = True
            sender.aborted = aborted
            self._queue(sender)

    def consumed(self, receiver: Receiver, count: int) -> None:
        """The first ``count`` bytes of ``receiver.peek()`` reached their reader."""
        receiver.take(count)
        self._account(receiver)

    def stop(self, receiver: Receiver) -> None:
        """The reader is gone: tell the writer and throw away what comes. Harmless when repeated."""
        if not receiver.stopped and not receiver.finished:
            receiver.discard()
            self._stop_if_known(receiver)
            self._account(receiver)

    def know(self, receiver: Receiver) -> None:
        """The agent has the stream (STARTED came): a STOP that was held back can be sent."""
        if not receiver.known and not receiver.finished:
            receiver.known = True
            self._stop_if_known(receiver)

    def forget(self, *streams: Sender | Receiver | None) -> None:
        """Drop streams of a job that was not started (FAILED): no EOF comes and none is sent."""
        for stream in streams:
            if stream is None or stream.finished:
                continue
            if isinstance(stream, Sender):
                self._senders.pop(stream.stream, None)
                stream.discard()
            else:
                self._receivers.pop(stream.stream, None)
                self._windows.pop(stream.stream, None)
                self._stops.pop(stream.stream, None)
                stream.discard()
            stream.finished = True

    def _stop_if_known(self, receiver: Receiver) -> None:
        if receiver.known and receiver.stopped and receiver.final is None:
            self._stops[receiver.stream] = wire.stop_frame(receiver.stream)

    def _account(self, receiver: Receiver) -> None:
        if receiver.finished:
            return
        stream = receiver.stream
        if receiver.ended:
            final = receiver.final or 0
            receiver.consumed = final
            receiver.renew()
            receiver.finished = True
            del self._receivers[stream]
            self._stops.pop(stream, None)
            self._windows[stream] = wire.window_frame(stream, final, receiver.limit, fin=True)
            self._touched[receiver] = None
        elif receiver.grant():
            self._windows[stream] = wire.window_frame(stream, receiver.consumed, receiver.limit)

    def _queue(self, sender: Sender) -> None:
        if not sender.queued and not sender.finished and sender.pending:
            sender.queued = True
            self._ready.append(sender)

    def take_touched(self) -> list[Sender | Receiver]:
        """The streams about which ``receive`` brought news since the last call: bytes, credit, STOP, the end."""
        touched = list(self._touched)
        self._touched.clear()
        return touched

    # Control messages

    def send_control(self, message: bytes) -> None:
        """Queue a whole control message (with its length); it leaves as credit allows."""
        self._backlog.append(message)
        self._feed_control()

    def _feed_control(self) -> None:
        while self._backlog:
            message = self._backlog[0]
            taken = self._control_out.write(message)
            if taken < len(message):
                self._backlog[0] = memoryview(message)[taken:]
                break
            self._backlog.popleft()
        self._queue(self._control_out)

    def next_control(self) -> bytes | None:
        """The next whole message from the agent (type and body), None when there is none yet.

        Only taking messages opens the window again: who stops calling stops the agent.
        """
        buffer = self._control_bytes
        if len(buffer) < 4:
            return None
        length = int.from_bytes(buffer[:4], "little")
        if not 1 <= length <= MAX_TO_HOST:
            raise ProtocolError(f"a control message has the impossible length {length}")
        if len(buffer) < 4 + length:
            return None
        message = bytes(buffer[4 : 4 + length])
        del buffer[: 4 + length]
        self._control_in.consumed += 4 + length
        self._account(self._control_in)
        return message

    # The byte stream

    def attach(self, nonce: bytes | None = None) -> None:
        """A new byte stream is there: greet the agent. ``nonce`` is 32 hex digits, random unless a test says."""
        self.detached()
        self.state = ATTACHING
        self._nonce = nonce or os.urandom(wire.KEY_SIZE // 2).hex().encode()
        table = tuple(receiver.reattach() for receiver in self._receivers.values())
        payload = wire.encode_attach(wire.Attach(wire.VERSION, self._nonce, table))
        self._first = [wire.preface(self.session or wire.FIRST_KEY), wire.frame(wire.ATTACH, 0, payload)]

    def detached(self) -> None:
        """The byte stream is gone. Whatever was on the way is sent again after the next ``attach``."""
        self.state = DETACHED
        self._partial = bytearray()
        self._found = False
        self._junk = 0
        self._first.clear()
        self._windows.clear()  # the tables of the next attach say it all
        self._stops.clear()
        self._ready.clear()
        for sender in self._senders.values():
            sender.detach()

    def data_to_send(self) -> list[bytes]:
        """Buffers to write to the byte stream, in order; empty when there is nothing to say."""
        out = self._first
        self._first = []
        if self.state != ATTACHED:
            return out
        if self._windows:
            out += self._windows.values()
            self._windows.clear()
        if self._stops:
            out += self._stops.values()
            self._stops.clear()
        size = 0
        while self._ready and size < _SEND_BUDGET and len(out) < _SEND_PIECES:
            sender = self._ready.popleft()
            size += sender.frame(out)
            sender.queued = False
            self._queue(sender)  # behind the others: nobody waits for more than one frame of each
        return out

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes from the byte stream. Raises ProtocolError; the connection is then of no more use."""
        if self.state == ATTACHING:
            self._partial += data
            if not self._attached():
                return
            data = b""
        partial = self._partial
        if not partial:
            with memoryview(data) as view:
                used = self._frames(view)
                if used < len(view):
                    partial += view[used:]
            return
        partial += data
        with memoryview(partial) as view:
            used = self._frames(view)
        del partial[:used]

    def _frames(self, view: memoryview) -> int:
        """Handle every whole frame of ``view``; returns how many bytes that took."""
        position = 0
        end = len(view)
        while end - position >= wire.FRAME_OVERHEAD:
            kind, flags, stream, length = wire.read_header(view, position)
            if kind in {wire.ATTACH, wire.ATTACHED}:
                raise ProtocolError(f"a frame of type {kind} came without being asked for")
            start = position + wire.HEADER_SIZE
            stop = start + length
            if stop >= end:
                break
            if view[stop] != 0x0A:
                raise ProtocolError("a frame does not end where it should")
            if kind == wire.DATA:
                receiver = self._receiver(stream)
                self._on_data(
                    receiver, int.from_bytes(view[start : start + 8], "little"), view[start + 8 : stop]
                )
            elif kind == wire.EOF:
                self._on_eof(
                    self._receiver(stream), int.from_bytes(view[start:stop], "little"), aborted=bool(flags)
                )
            elif kind == wire.WINDOW:
                consumed = int.from_bytes(view[start : start + 8], "little")
                limit = int.from_bytes(view[start + 8 : stop], "little")
                self._on_window(self._sender(stream), consumed, limit, fin=bool(flags))
            else:
                self._on_stop(self._sender(stream))
            position = stop + 1
        return position

    def _receiver(self, stream: int) -> Receiver:
        receiver = self._receivers.get(stream)
        if receiver is None:
            raise ProtocolError(f"the agent sends on the unknown stream {stream}")
        return receiver

    def _sender(self, stream: int) -> Sender:
        sender = self._senders.get(stream)
        if sender is None:
            raise ProtocolError(f"the agent answers on the unknown stream {stream}")
        return sender

    def _on_data(self, receiver: Receiver, offset: int, payload: memoryview) -> None:
        first = not receiver.known
        receiver.data(offset, payload)
        if receiver is self._control_in:
            self._control_bytes += receiver.pull()
            return
        if first:
            self._stop_if_known(receiver)
        if receiver.stopped:
            self._account(receiver)
        self._touched[receiver] = None

    def _on_eof(self, receiver: Receiver, final: int, *, aborted: bool) -> None:
        if receiver is self._control_in:
            raise ProtocolError("the agent ended the control stream")
        receiver.end(final, aborted=aborted)
        self._stops.pop(receiver.stream, None)
        self._account(receiver)
        self._touched[receiver] = None

    def _on_window(self, sender: Sender, consumed: int, limit: int, *, fin: bool) -> None:
        sender.acknowledge(consumed, limit)
        if fin:
            if not sender.eof_ever_sent or consumed != sender.next:
                raise ProtocolError(f"the agent finished stream {sender.stream} before its end")
            self._finish(sender)
        elif sender is self._control_out:
            self._feed_control()
        else:
            self._queue(sender)
        self._touched[sender] = None

    def _finish(self, sender: Sender) -> None:
        sender.finished = True
        sender.clear()
        del self._senders[sender.stream]
        self._touched[sender] = None

    def _on_stop(self, sender: Sender) -> None:
        if sender is self._control_out:
            raise ProtocolError("the agent stopped the control stream")
        sender.known = True
        sender.discard()
        self._queue(sender)
        self._touched[sender] = None

    # Attaching

    def _attached(self) -> bool:
        """Look for the answer to ATTACH; True once it was handled and frames follow."""
        buffer = self._partial
        if not self._found:
            wanted = wire.preface(self._nonce)
            at = buffer.find(wanted)
            if at < 0:
                # Whatever the guest had written for an earlier byte stream: our table tells it to send that again.
                junk = max(0, len(buffer) - len(wanted) + 1)
                del buffer[:junk]
                self._junk += junk
                if self._junk > _MOST_JUNK:
                    raise ProtocolError(
                        f"more than {_MOST_JUNK >> 20} MiB came before the answer to the greeting"
                    )
                return False
            del buffer[: at + len(wanted)]
            self._found = True
        if len(buffer) < wire.FRAME_OVERHEAD:
            return False
        kind, _, stream, length = wire.read_header(buffer, 0)
        if kind != wire.ATTACHED or stream != 0:
            raise ProtocolError("the agent does not answer ATTACH with ATTACHED")
        if len(buffer) < wire.FRAME_OVERHEAD + length:
            return False
        if buffer[wire.HEADER_SIZE + length] != 0x0A:
            raise ProtocolError("an ATTACHED frame does not end where it should")
        answer = wire.decode_attached(bytes(buffer[wire.HEADER_SIZE : wire.HEADER_SIZE + length]))
        del buffer[: wire.FRAME_OVERHEAD + length]
        self._resume(answer)
        return True

    def _resume(self, answer: wire.Attached) -> None:
        if answer.version != wire.VERSION:
            raise ProtocolError(
                f"the agent speaks version {answer.version} of the protocol and cloche version {wire.VERSION}",
                hint="Agent and cloche are of different versions: `make setup` in cloche's directory makes both.",
            )
        first = self.session is None
        if answer.fresh != first or not (first or answer.session == self.session):
            raise ProtocolError("another agent answers than the one this domain was started with")
        rows = {row.stream: row for row in answer.table}
        if len(rows) != len(answer.table) or 0 not in rows:
            raise ProtocolError("the agent's table of streams is malformed")
        self.session = answer.session
        self.attached_count += 1
        self.state = ATTACHED
        for sender in list(self._senders.values()):
            row = rows.pop(sender.stream, None)
            if row is not None:
                sender.reattach(row)
                self._queue(sender)
            elif sender.eof_ever_sent:
                self._finish(sender)
            self._touched[sender] = None
        if rows:
            raise ProtocolError(f"the agent's table names the unknown stream {min(rows)}")
        # Before all content: until a frame has come the agent takes the first preface, which everybody knows and a
        # word of the first message (a shared directory's name) may hold.
        control = self._control_in
        self._windows[control.stream] = wire.window_frame(control.stream, control.consumed, control.limit)
        self._feed_control()
        for receiver in self._receivers.values():
            self._stop_if_known(receiver)
