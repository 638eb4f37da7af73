"""A conversation whose host changes (layer 3): exported while its machine is saved, gone on with by another supervisor.

And the ends of streams on the host, which a program gets when it is started and gets anew when its host has changed.
"""

from __future__ import annotations

from cloche.errors import DomainError
from cloche.guest import messages
from cloche.guest.channel import ChannelState
from cloche.guest.job import Job
from cloche.guest.mux import Mux
from cloche.guest.pumps import InputPump, OutputPump, SinkPump, SourcePump
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.guest.messages import Message, SetupDone, SetupFailed
    from cloche.guest.pumps import Pump
    from cloche.guest.streams import Receiver, Sender
    from cloche.host.reactor import Reactor

    Source = int | bytes | Callable[[int], bytes | None] | None
    Sink = int | Callable[[bytes], int | None] | None
    SetupAnswer = Callable[[SetupDone | SetupFailed], None]


class MovableSession:
    """What of a session can be exported and adopted; ``AgentSession`` is the whole."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.mux = Mux()
        self.ready: messages.Ready | None = None
        self._pumps: dict[Sender | Receiver, Pump] = {}
        self._owners: dict[Receiver, Job] = {}
        self._jobs: dict[int, Job] = {}
        self._next_job = 1
        self._next_seq = 1
        self._setups: dict[int, SetupAnswer] = {}
        self._syncs: dict[int, Callable[[], None]] = {}

    def _tell(self, message: Message, encoded: bytes | None = None) -> None:
        raise NotImplementedError

    def flush_soon(self) -> None:
        """Handle news and send what there is at the end of this turn."""
        raise NotImplementedError

    def export(self) -> ChannelState:
        """Return all that it would take to go on with the conversation. The agent must have answered.

        Raises:
            DomainError: It has not.
        """
        if self.ready is None:
            raise DomainError("the guest's agent has not answered yet", hint="Try again in a moment.")
        return ChannelState(
            self.mux.export(),
            self.ready.agent_version,
            self.ready.kernel,
            tuple(job.export() for job in self._jobs.values()),
            self._next_job,
            self._next_seq,
            tuple(self._setups),
            tuple(self._syncs),
        )

    def adopt(self, state: ChannelState, streams: Callable[[int], tuple[Source, Sink, Sink]]) -> list[Job]:
        """Go on with a conversation that was exported, before ``attach``; returns the programs that run.

        ``streams`` says for each job what its streams are connected to now: input, output and errors.
        """
        self.mux = Mux.restored(state.mux)
        self.ready = messages.Ready(state.agent, state.kernel, 0)
        self._next_job, self._next_seq = state.next_job, state.next_seq
        # Nobody waits for these any more.
        self._setups = dict.fromkeys(state.setups, _ignore)
        self._syncs = dict.fromkeys(state.syncs, _ignore_sync)
        for one in state.jobs:
            source, stdout, stderr = streams(one.number)
            job = Job(one.number, self._tell)
            job.pid = one.pid or None
            job.has_terminal = one.terminal
            if one.exited is not None:
                job.exited = messages.Exited(one.number, *one.exited, 0, 0, 0, 0)
            job.streams = (one.stdin, one.stdout, one.stderr, one.typed)
            sender = self.mux.sender(one.stdin) if one.stdin else None
            typed = self.mux.sender(one.typed) if one.typed else None
            out = self.mux.receiver(one.stdout)
            err = self.mux.receiver(one.stderr) if one.stderr != one.stdout else None
            job.stdin = self._input(sender, b"" if source is None else source)
            if typed is not None:
                self.mux.end(typed)
            job.stdout = self._output(out, stdout or _drop)
            job.stderr = self._output(err, stderr or _drop)
            job.senders = [each for each in (sender, typed) if each is not None]
            job.receivers = [each for each in (out, err) if each is not None]
            for receiver in job.receivers:
                self._owners[receiver] = job
            self._jobs[job.number] = job
        return list(self._jobs.values())

    def _input(self, sender: Sender | None, source: Source) -> InputPump | SourcePump | None:
        if sender is None or source is None:
            return None
        pump: InputPump | SourcePump
        if isinstance(source, int):
            pump = InputPump(self, sender, source)
        elif isinstance(source, bytes):
            rest = memoryview(source)

            def take(size: int) -> bytes:
                nonlocal rest
                piece, rest = bytes(rest[:size]), rest[size:]
                return piece

            pump = SourcePump(self, sender, take)
        else:
            pump = SourcePump(self, sender, source)
        self._pumps[sender] = pump
        return pump

    def _output(self, receiver: Receiver | None, sink: Sink) -> OutputPump | SinkPump | None:
        if receiver is None or sink is None:
            return None
        pump: OutputPump | SinkPump
        if isinstance(sink, int):
            pump = OutputPump(self, receiver, sink)
        else:
            pump = SinkPump(self, receiver, sink)
        self._pumps[receiver] = pump
        return pump


def _ignore(answer: SetupDone | SetupFailed) -> None:
    """Take note of nothing."""


def _ignore_sync() -> None:
    """Take note of nothing."""


def _drop(data: bytes) -> int | None:
    """Let output go."""
    del data
    return None
