"""One program in the guest, seen from the host (layer 3)."""

from __future__ import annotations

from cloche.errors import ProtocolError
from cloche.guest.channel import JobState
from cloche.guest.messages import KIND_SIGNAL, Exited, Failed, Resize, Signal, Started, Stopped
from cloche.host.text import escape_untrusted
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.guest.messages import Continued, Message
    from cloche.guest.pumps import InputPump, OutputPump, SinkPump, SourcePump
    from cloche.guest.streams import Receiver, Sender


class Job:
    """What ``AgentSession.exec`` returns. Set the callbacks at once: none is called before the loop runs again.

    Attributes:
        number: The job's id on the wire.
        pid: The guest's process id, None until STARTED.
        exited: How the program ended, None until then (its output may still be on the way).
        failure: Why nothing was started, None if it was; ``failure_text`` is safe to show.
        done: EXITED and every byte of output delivered (or thrown away because the host's reader left), or FAILED.
        streams: The ids of its input, output, errors, and of what is typed where that is not its input; 0 for none.
        has_terminal: Whether it runs on a terminal.
        on_started, on_exited, on_stopped, on_continued, on_done: Called with the job; ``on_stopped`` also gets
            the signal.
    """

    def __init__(self, number: int, send: Callable[[Message], None]) -> None:
        self.number = number
        self.pid: int | None = None
        self.exited: Exited | None = None
        self.failure: Failed | None = None
        self.done = False
        self.on_started: Callable[[Job], None] | None = None
        self.on_exited: Callable[[Job], None] | None = None
        self.on_stopped: Callable[[Job, int], None] | None = None
        self.on_continued: Callable[[Job], None] | None = None
        self.on_done: Callable[[Job], None] | None = None
        self._send = send
        self.stdin: InputPump | SourcePump | None = None
        self.stdout: OutputPump | SinkPump | None = None
        self.stderr: OutputPump | SinkPump | None = None
        self.keys: InputPump | None = None
        self.streams: tuple[int, int, int, int] = (0, 0, 0, 0)
        self.has_terminal = False
        self.senders: list[Sender] = []
        self.receivers: list[Receiver] = []

    def export(self) -> JobState:
        """Return what it takes to go on with it."""
        ended = self.exited
        exited = (ended.kind, ended.value) if ended is not None else None
        return JobState(self.number, self.pid or 0, *self.streams, self.has_terminal, exited)

    @property
    def failure_text(self) -> str:
        """The agent's reason for not starting the program, escaped."""
        return escape_untrusted(self.failure.what, 200) if self.failure else ""

    @property
    def status(self) -> int | None:
        """The exit status as a shell gives it: 0 to 255, 128+N for signal N, None while it runs."""
        if self.exited is None:
            return None
        return self.exited.value + (128 if self.exited.kind == KIND_SIGNAL else 0)

    def output_error(self) -> OSError | None:
        """What writing its output on the host failed with (a full disk), other than a reader that left."""
        for pump in (self.stdout, self.stderr):
            if pump is not None and pump.error is not None:
                return pump.error
        return None

    def signal(self, signo: int) -> None:
        """Send a signal; nothing happens when the program has ended."""
        if self.exited is None and self.failure is None:
            self._send(Signal(self.number, signo))

    def resize(self, rows: int, cols: int) -> None:
        """Tell the job's terminal its size in characters."""
        if self.exited is None and self.failure is None:
            self._send(Resize(self.number, rows, cols))

    def heard(self, message: Started | Failed | Exited | Stopped | Continued) -> None:
        """Take the agent's news. Raises ProtocolError when it makes no sense now."""
        if isinstance(message, Started):
            self._expect(self.pid is None and self.failure is None)
            self.pid = message.pid
            _call(self.on_started, self)
        elif isinstance(message, Failed):
            self._expect(self.pid is None and self.failure is None)
            self.failure = message
        elif isinstance(message, Exited):
            self._expect(self.pid is not None and self.exited is None)
            self.exited = message
            _call(self.on_exited, self)
        elif isinstance(message, Stopped):
            if self.on_stopped is not None:
                self.on_stopped(self, message.signo)
        else:
            _call(self.on_continued, self)

    def _expect(self, condition: bool) -> None:
        if not condition:
            raise ProtocolError(f"the agent's messages about job {self.number} contradict each other")

    def settle(self) -> bool:
        """Whether the job has just become done."""
        delivered = self.exited is not None and all(receiver.finished for receiver in self.receivers)
        if self.done or not (delivered or self.failure is not None):
            return False
        self.done = True
        self.close_pumps()
        return True

    def close_pumps(self) -> None:
        """Move nothing any more between the job's streams and what stands at their host ends."""
        for pump in (self.stdin, self.stdout, self.stderr, self.keys):
            if pump is not None:
                pump.close()


def _call(callback: Callable[[Job], None] | None, job: Job) -> None:
    if callback is not None:
        callback(job)
