"""The agent's role of the channel, written apart from ``cloche.guest`` for its tests.

It follows protocol/README.md with the simplest means: every stream's whole history is kept in one buffer, and offsets
index it. What the host sends that the specification does not allow is an AssertionError.
"""

from __future__ import annotations

import struct

PREFACE = b"\xc1CLOCHE\x01"
WINDOW = 262144


class Out:
    """A stream to the host."""

    def __init__(self, limit: int) -> None:
        self.history = bytearray()
        self.sent = 0
        self.acked = 0
        self.limit = limit
        self.ended = False
        self.aborted = False
        self.eof_sent = False
        self.eof_ever = False


class In:
    """A stream from the host."""

    def __init__(self, granted: bool) -> None:
        self.history = bytearray()
        self.consumed = 0
        self.limit = WINDOW if granted else 0
        self.final: int | None = None
        self.aborted = False
        self.stopped = False


def frame(kind: int, stream: int, payload: bytes = b"", flags: int = 0) -> bytes:
    """One frame."""
    return struct.pack("<BBHII", kind, flags, 0, stream, len(payload)) + payload + b"\n"


class AgentPeer:
    """An agent that attaches, opens the streams of EXECs, and moves bytes when told to."""

    def __init__(self, session: bytes = b"5e" * 16) -> None:
        self.session = session
        self.attached_once = False
        self.confirmed = False
        self.outs: dict[int, Out] = {1: Out(WINDOW)}
        self.ins: dict[int, In] = {0: In(granted=True)}
        self.inbox = bytearray()
        self.outbox: list[bytes] = []
        self.commands: list[bytes] = []
        self.ignored = 0
        self.finished_in: dict[int, In] = {}
        self.finished_out: dict[int, Out] = {}

    def tell(self, number: int, body: bytes) -> None:
        """Queue a control message to the host."""
        self.outs[1].history += struct.pack("<IB", len(body) + 1, number) + body

    # Receiving

    def cut(self) -> None:
        """The byte stream is gone. An agent behind a serial port does not notice: its buffers stay."""

    def receive(self, data: bytes) -> None:
        """Take bytes from the host."""
        self.inbox += data
        while self._step():
            pass

    def _step(self) -> bool:
        # Until a frame shows that the host got ATTACHED it cannot know the session key.
        keys = [self.session] if self.confirmed else [self.session, b"0" * 32]
        at = max(self.inbox.rfind(PREFACE + key) for key in keys)
        if at >= 0:
            head = at + len(PREFACE) + 32
            if len(self.inbox) < head + 12:
                return False
            kind, _, _, _, length = struct.unpack_from("<BBHII", self.inbox, head)
            if kind == 1 and len(self.inbox) < head + 13 + length:
                return False
            if kind != 1 or self.inbox[head + 12 + length] != 10:  # cut: another byte stream begins in it
                del self.inbox[: at + 1]
                return True
            payload = bytes(self.inbox[head + 12 : head + 12 + length])
            self.confirmed |= bytes(self.inbox[at + len(PREFACE) : head]) == self.session
            rest = self.inbox[head + 13 + length :]
            del self.inbox[at:]
            while self._frame(len(self.inbox)):  # whole frames before the preface still count
                pass
            self.inbox[:] = rest
            self._attach(payload)
            return True
        return bool(self._frame(len(self.inbox)))

    def _frame(self, end: int) -> int:
        if not self.attached_once or end < 13:
            return 0
        kind, flags, zero, stream, length = struct.unpack_from("<BBHII", self.inbox, 0)
        if zero or kind not in (3, 4, 5, 6) or length > 65544:
            return 0
        if end < 13 + length or self.inbox[12 + length] != 10:
            return 0
        payload = bytes(self.inbox[12 : 12 + length])
        del self.inbox[: 13 + length]
        self.confirmed = True
        self._handle(kind, flags, stream, payload)
        return 13 + int(length)

    def _attach(self, payload: bytes) -> None:
        version, nonce, count = struct.unpack_from("<H32sI", payload)
        rows = {}
        for index in range(count):
            stream, received, consumed, limit = struct.unpack_from("<IQQQ", payload, 38 + 28 * index)
            rows[stream] = (received, consumed, limit)
        assert version == 1
        self.outbox.clear()
        table = b"".join(
            struct.pack("<IQQQ", stream, len(end.history), end.consumed, end.limit)
            for stream, end in self.ins.items()
        )
        answer = struct.pack("<H32sB", 1, self.session, 0 if self.confirmed else 1)
        self.outbox.append(PREFACE + nonce + frame(2, 0, answer + struct.pack("<I", len(self.ins)) + table))
        first = not self.attached_once
        self.attached_once = True
        for stream, out in list(self.outs.items()):
            if stream in rows:
                received, consumed, limit = rows[stream]
                assert out.acked <= consumed <= received <= len(out.history)
                out.acked, out.limit = consumed, max(limit, out.limit)
                out.sent = len(out.history) if out.aborted else received
                out.eof_sent = False
            elif out.eof_ever:
                self.finished_out[stream] = self.outs.pop(stream)
        for stream, end in self.ins.items():
            if end.stopped:
                self.outbox.append(frame(6, stream))
        if first:
            self.tell(65, struct.pack("<I", 1) + b"0" + struct.pack("<I", 1) + b"k" + struct.pack("<Q", 1))

    def _handle(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind in (3, 5):
            end = self.ins.get(stream)
            if end is None:
                self.ignored += 1
                return
            (offset,) = struct.unpack_from("<Q", payload)
            if kind == 3:
                assert end.final is None
                assert offset == len(end.history)
                end.history += payload[8:]
                assert len(end.history) <= end.limit
                if stream == 0:
                    self._commands(end)
                elif end.stopped:
                    self.consume(stream, len(payload) - 8)
            else:
                end.aborted = bool(flags)
                assert offset >= len(end.history) if flags else offset == len(end.history)
                end.final = offset
                if end.aborted:
                    end.consumed = offset
                self._maybe_finish(stream)
        else:
            out = self.outs.get(stream)
            if out is None:
                self.ignored += 1
            elif kind == 6:
                out.aborted = True
                out.ended = True
                out.sent = len(out.history)
            else:
                consumed, limit = struct.unpack("<QQ", payload)
                assert out.acked <= consumed <= out.sent
                assert out.limit <= limit <= consumed + WINDOW
                out.acked, out.limit = consumed, limit
                if flags:
                    assert out.ended
                    assert consumed == len(out.history)
                    self.finished_out[stream] = self.outs.pop(stream)

    def _commands(self, end: In) -> None:
        while len(end.history) - end.consumed >= 4:
            (length,) = struct.unpack_from("<I", end.history, end.consumed)
            if len(end.history) - end.consumed < 4 + length:
                break
            body = bytes(end.history[end.consumed + 4 : end.consumed + 4 + length])
            self.consume(0, 4 + length)
            self.commands.append(body)
            if body[0] == 2:
                job, stdin, stdout, stderr = struct.unpack_from("<IIII", body, 1)
                if stdin:
                    self.ins[stdin] = In(granted=False)
                    self.grant(stdin)
                for stream in (stdout, stderr):
                    if stream:
                        self.outs[stream] = Out(WINDOW)
                self.tell(68, struct.pack("<II", job, 1000 + job))

    # Acting

    def grant(self, stream: int) -> None:
        """Send a WINDOW for what was consumed."""
        end = self.ins[stream]
        end.limit = end.consumed + WINDOW
        self.outbox.append(frame(4, stream, struct.pack("<QQ", end.consumed, end.limit)))

    def consume(self, stream: int, count: int) -> None:
        """The program read ``count`` bytes of its input."""
        end = self.ins[stream]
        before = end.consumed
        end.consumed = min(len(end.history), end.consumed + count)
        if end.consumed // 65536 != before // 65536:
            self.grant(stream)
        self._maybe_finish(stream)

    def _maybe_finish(self, stream: int) -> None:
        end = self.ins[stream]
        if end.final is not None and end.consumed == end.final:
            self.outbox.append(frame(4, stream, struct.pack("<QQ", end.final, end.final + WINDOW), 1))
            self.finished_in[stream] = self.ins.pop(stream)

    def stop(self, stream: int) -> None:
        """The program closed its input."""
        end = self.ins[stream]
        end.stopped = True
        self.outbox.append(frame(6, stream))
        self.consume(stream, len(end.history) - end.consumed)

    def data_to_send(self, size: int = 65536) -> bytes:
        """What there is to send, in frames of at most ``size`` bytes."""
        parts = self.outbox
        self.outbox = []
        if self.attached_once:
            for stream, out in self.outs.items():
                end = min(out.limit, len(out.history))
                while not out.aborted and out.sent < end:
                    chunk = bytes(out.history[out.sent : min(out.sent + size, end)])
                    parts.append(frame(3, stream, struct.pack("<Q", out.sent) + chunk))
                    out.sent += len(chunk)
                if out.ended and not out.eof_sent and (out.aborted or out.sent == len(out.history)):
                    out.eof_sent = out.eof_ever = True
                    final = len(out.history)
                    parts.append(frame(5, stream, struct.pack("<Q", final), int(out.aborted)))
        return b"".join(parts)
