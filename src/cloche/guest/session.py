"""The agent's client: one connection to one guest, its set-up, its programs (layer 3).

Joins ``cloche.guest.mux`` (what is said) to a reactor and a socket. Everything is asked for at once and answered by
callbacks from the loop; what is asked before the agent has attached is sent when it has. When the socket is cut it is
connected again and nothing is lost or doubled (``protocol/README.md`` section 4).
"""

from __future__ import annotations

import os
from time import time_ns

from cloche import log
from cloche.errors import ClocheError, DomainError, ProtocolError, UsageError
from cloche.guest import messages
from cloche.guest.agentlog import AgentLog
from cloche.guest.job import Job
from cloche.guest.moved import MovableSession
from cloche.guest.mux import ATTACHED
from cloche.guest.redial import Redial
from cloche.guest.streams import Receiver, Sender
from cloche.host.reactor import READ, WRITE
from cloche.model.guest import Clock, Entropy
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from cloche.guest.messages import Message, Ready, SetupDone, SetupFailed, ToAgent
    from cloche.guest.pumps import InputPump
    from cloche.host.reactor import Reactor
    from cloche.model.guest import GuestCommand, Step

    Source = int | bytes | Callable[[int], bytes | None] | None
    Sink = int | Callable[[bytes], int | None] | None
    Keys = Callable[["AgentSession", Sender], InputPump]
    SetupAnswer = Callable[[SetupDone | SetupFailed], None]

#: As ``stderr``: the same stream as ``stdout``, so that their order is kept (the value of subprocess.STDOUT).
STDOUT = -2

_RECEIVE = 262144
#: Bytes sent in one turn before others get theirs.
_SEND_PER_TURN = 1 << 20
#: Control messages handled in one turn; more wait, and while they wait the agent gets no new credit.
_CONTROL_PER_TURN = 64
_ENTROPY_SIZE = 64


def _fill_in(step: Step) -> Step:
    """Steps whose value is only known when they are sent."""
    if isinstance(step, Clock) and step.realtime_ns == 0:
        return Clock(time_ns())
    if isinstance(step, Entropy) and not step.seed:
        return Entropy(os.urandom(_ENTROPY_SIZE))
    return step


class AgentSession(MovableSession):
    """A conversation with the agent of one domain.

    Args:
        reactor: The loop that drives it; every callback comes from there.
        connect: Makes a connected stream socket to the agent; called again after a cut. May raise OSError.
        resume: Whether to connect again after a cut. Without it a cut loses the agent at once.

    Attributes:
        ready: The agent's READY, once it came.
        lost: Why the conversation ended, None while it goes on (or was ended by ``close``).
        on_attached: Called when the agent has answered the greeting for the first time, before it is told anything.
        on_ready: Called with READY.
        on_log: Called with level (0 debug to 3 error) and escaped text of the agent's own messages.
        on_lost: Called once when the agent is gone for good or broke the protocol. Without it the error is raised
            out of the loop.
        on_closed: Called instead of ``on_lost`` when the connection ends after ``poweroff``.
    """

    def __init__(
        self, reactor: Reactor, connect: Callable[[], socket.socket], *, resume: bool = True
    ) -> None:
        super().__init__(reactor)
        self.lost: ClocheError | None = None
        self.on_attached: Callable[[], None] | None = None
        self.on_ready: Callable[[Ready], None] | None = None
        self.on_log: Callable[[int, str], None] | None = None
        self.on_lost: Callable[[ClocheError], None] | None = None
        self.on_closed: Callable[[], None] | None = None
        self._connect = connect
        self._resume = resume
        self._socket: socket.socket | None = None
        self._buffer = memoryview(bytearray(_RECEIVE))
        self._out: list[bytes | memoryview] = []
        self._settling = False
        self._closed = False
        self._leaving = False
        self._reads = READ
        self._redial = Redial(reactor, self._open, self._drop_socket)
        self._attach_seen = 0
        self._early: list[ToAgent] = []
        self._log = AgentLog(reactor.time())

    # What one can ask for

    def attach(self) -> None:
        """Connect and greet the agent. Everything asked for so far is sent once it answers."""
        self._open()

    def setup(self, steps: Iterable[Step], answer: SetupAnswer) -> None:
        """Do ``steps`` in the guest; ``answer`` gets SetupDone or SetupFailed.

        Clock steps of 0 and empty Entropy steps are filled in at the moment of sending.
        """
        seq = self._take_seq()
        self._setups[seq] = answer
        self._tell(messages.Setup(seq, tuple(steps)))

    def sync(self, answer: Callable[[], None]) -> None:
        """Write back every writable file system of the guest, then call ``answer``."""
        seq = self._take_seq()
        self._syncs[seq] = answer
        self._tell(messages.Sync(seq))

    def poweroff(self) -> None:
        """Let the guest end. The end of the connection is then no error (``on_closed``)."""
        self._leaving = True
        self._tell(messages.Poweroff())

    def exec(
        self,
        command: GuestCommand,
        *,
        stdin: Source = None,
        stdout: Sink = None,
        stderr: Sink = None,
        terminal: tuple[int, int] | None = None,
        keys: Keys | None = None,
        linger: bool = False,
    ) -> Job:
        """Start a program.

        Args:
            command: What to run.
            stdin: A descriptor of any kind (duplicated, never switched to non-blocking), bytes, a callable
                (see ``SourcePump``), or None for /dev/null.
            stdout: A descriptor, a callable that takes bytes, or None for /dev/null.
            stderr: Like ``stdout``, or STDOUT. With ``terminal``, None is the terminal.
            terminal: Rows and columns: run it on a pty. Needs stdout, and stdin or keys.
            keys: Makes the pump of what is typed, for a terminal that is not the program's stdin.
            linger: Background processes may go on writing after the program ended.

        Raises:
            UsageError: Arguments and environment are larger than the channel takes (4 MiB).
            OSError: A descriptor is not open, or there are no more.
        """
        typed_on = stdin if keys is None else keys
        if terminal is not None and (typed_on is None or stdout is None or stderr == STDOUT):
            raise ValueError("a terminal needs stdin and stdout, and has no stderr of its own but a pipe")
        job = Job(self._next_job, self._tell)
        sender = self.mux.open_sender() if stdin is not None else None
        typed = self.mux.open_sender() if keys is not None else None
        out = self.mux.open_receiver() if stdout is not None else None
        merged = stderr == STDOUT
        err = out if merged else self.mux.open_receiver() if stderr is not None else None
        flags = messages.FLAG_STRACE if command.strace else 0
        flags |= (messages.FLAG_TTY if terminal else 0) | (messages.FLAG_LINGER if linger else 0)
        rows, cols = terminal or (0, 0)
        message = messages.Exec(
            job.number,
            sender.stream if sender else 0,
            out.stream if out else 0,
            err.stream if err else 0,
            flags,
            rows,
            cols,
            command.uid,
            command.gid,
            command.umask,
            command.groups,
            command.pids_max,
            command.cwd,
            command.argv,
            command.env,
            command.program,
            typed.stream if typed else 0,
            command.ignored,
            command.nice,
        )
        job.has_terminal = terminal is not None
        job.streams = (message.stdin, message.stdout, message.stderr, message.keys)
        job.senders = [one for one in (sender, typed) if one is not None]
        job.receivers = [receiver for receiver in (out, None if merged else err) if receiver is not None]
        try:
            encoded = messages.encode(message)
            job.stdin = self._input(sender, stdin)
            job.stdout = self._output(out, stdout)
            job.stderr = None if merged else self._output(err, stderr)
            if keys is not None and typed is not None:
                job.keys = self._pumps[typed] = keys(self, typed)
        except (OSError, ValueError) as error:
            self._forget(job)
            job.close_pumps()
            if isinstance(error, OSError):
                raise
            raise UsageError(
                f"the program cannot be described to the guest: {error}",
                hint="Arguments and environment together may have 4 MiB.",
            ) from error
        self._next_job += 1
        self._jobs[job.number] = job
        for receiver in job.receivers:
            self._owners[receiver] = job
        self._tell(message, encoded)
        return job

    def hold(self, held: bool) -> None:
        """Take nothing from the guest's machine, or go on with it; another machine is listened to at once.

        A VMM that finds room in the channel puts into it what the guest has left for it, and says so in the guest's
        memory, also while the guest stands still and its devices are saved already.
        """
        self._reads = 0 if held else READ
        if self._socket is not None:
            self.reactor.modify(self._socket.fileno(), self._reads)
            self.flush_soon()

    def close(self) -> None:
        """End the conversation without a word. No callback comes any more. Harmless when repeated."""
        self._closed = True
        self._drop_socket()
        self._redial.cancel()
        for pump in self._pumps.values():
            pump.close()
        self._pumps.clear()

    # Pieces of exec

    def _forget(self, job: Job) -> None:
        self.mux.forget(*job.senders, *job.receivers)
        for sender in job.senders:
            self._pumps.pop(sender, None)
        for receiver in job.receivers:
            self._pumps.pop(receiver, None)
            self._owners.pop(receiver, None)

    def _take_seq(self) -> int:
        self._next_seq += 1
        return self._next_seq - 1

    # Sending

    def _tell(self, message: Message, encoded: bytes | None = None) -> None:
        if self.mux.attached_count == 0:
            self._early.append(message)  # type: ignore[arg-type]
            return
        if isinstance(message, messages.Setup):
            message = messages.Setup(message.seq, tuple(_fill_in(step) for step in message.steps))
        self.mux.send_control(encoded or messages.encode(message))
        self.flush_soon()

    def flush_soon(self) -> None:
        """Handle news and send what there is at the end of this turn."""
        if not self._settling:
            self._settling = True
            self.reactor.call_soon(self._settle)

    def _settle(self) -> None:
        self._settling = False
        if self._closed or self.lost is not None:
            return
        try:
            self._handle_control()
            self._handle_touched()
        except ProtocolError as error:
            self._lose(error)
            return
        self._flush()

    def _flush(self) -> None:
        budget = _SEND_PER_TURN
        while self._socket is not None:
            if not self._out:
                self._out = list(self.mux.data_to_send())
                if not self._out:
                    self.reactor.modify(self._socket.fileno(), self._reads)
                    return
            try:
                sent = self._socket.sendmsg(self._out)
            except BlockingIOError:
                break
            except OSError as error:
                self._cut(error)
                return
            budget -= sent
            self._advance(sent)
            if budget <= 0:
                break
        if self._socket is not None:
            self.reactor.modify(self._socket.fileno(), self._reads | WRITE)

    def _advance(self, sent: int) -> None:
        out = self._out
        done = 0
        while done < len(out) and sent >= len(out[done]):
            sent -= len(out[done])
            done += 1
        if sent:
            out[done] = memoryview(out[done])[sent:]
        del out[:done]

    # Receiving

    def _event(self, events: int) -> None:
        if self._socket is None:
            return
        if events & ~WRITE:
            try:
                size = self._socket.recv_into(self._buffer)
            except BlockingIOError:
                size = -1
            except OSError as error:
                self._cut(error)
                return
            if size == 0:
                self._cut(None)
                return
            if size > 0:
                try:
                    self.mux.receive(self._buffer[:size])
                except ProtocolError as error:
                    self._lose(error)
                    return
                if self.mux.attached_count != self._attach_seen:
                    self._greeted()
        self.flush_soon()

    def _greeted(self) -> None:
        is_first = self._attach_seen == 0
        self._attach_seen = self.mux.attached_count
        self._redial.answered()
        if is_first and self.on_attached is not None:
            self.on_attached()
            if self._closed:
                return
        early, self._early = self._early, []
        for message in early:
            self._tell(message)

    def _handle_touched(self) -> None:
        for stream in self.mux.take_touched():
            pump = self._pumps.get(stream)
            if pump is not None:
                pump.update()
            if stream.finished:
                self._pumps.pop(stream, None)
                if pump is not None:
                    pump.close()
                job = self._owners.pop(stream, None) if isinstance(stream, Receiver) else None
                if job is not None:
                    self._maybe_done(job)

    def _maybe_done(self, job: Job) -> None:
        if job.settle():
            for sender in job.senders:
                # Whoever still reads in the guest gets the end of file.
                self.mux.end(sender, aborted=True)
            self._jobs.pop(job.number, None)
            if job.on_done is not None:
                job.on_done(job)

    def _handle_control(self) -> None:
        for _ in range(_CONTROL_PER_TURN):
            body = self.mux.next_control()
            if body is None:
                return
            self._on_message(messages.decode(body))
            if self._closed:
                return
        self.flush_soon()

    def _on_message(self, message: Message) -> None:
        if isinstance(message, messages.Log):
            self._log.take(message, self.reactor.time(), self.on_log)
        elif isinstance(message, messages.Ready):
            if self.ready is not None:
                raise ProtocolError("the agent says READY twice")
            self.ready = message
            if self.on_ready is not None:
                self.on_ready(message)
        elif isinstance(message, (messages.SetupDone, messages.SetupFailed)):
            answer = self._setups.pop(message.seq, None)
            if answer is None:
                raise ProtocolError(f"the agent answers the set-up {message.seq} nobody asked for")
            answer(message)
        elif isinstance(message, messages.Synced):
            done = self._syncs.pop(message.seq, None)
            if done is None:
                raise ProtocolError(f"the agent answers the sync {message.seq} nobody asked for")
            done()
        elif isinstance(
            message,
            (messages.Started, messages.Failed, messages.Exited, messages.Stopped, messages.Continued),
        ):
            self._on_job(message)

    def _on_job(
        self,
        message: messages.Started | messages.Failed | messages.Exited | messages.Stopped | messages.Continued,
    ) -> None:
        job = self._jobs.get(message.job)
        if job is None:
            if 0 < message.job < self._next_job:
                return  # late news of a job that is over
            raise ProtocolError(f"the agent speaks of the unknown job {message.job}")
        job.heard(message)
        if isinstance(message, messages.Started):
            for receiver in job.receivers:
                self.mux.know(receiver)
        elif isinstance(message, messages.Failed):
            self._forget(job)
        self._maybe_done(job)

    # The socket's life

    def _open(self) -> None:
        try:
            connection = self._connect()
        except OSError as error:
            self._cut(error)
            return
        connection.setblocking(False)
        self._socket = connection
        self._out = []
        self.mux.attach()
        self.reactor.register(connection.fileno(), READ, self._event)
        self._redial.connected()
        self.flush_soon()

    def _drop_socket(self) -> None:
        if self._socket is not None:
            self.reactor.unregister(self._socket.fileno())
            self._socket.close()
            self._socket = None
        self._reads = READ
        self._out = []
        self.mux.detached()

    def _cut(self, error: OSError | None) -> None:
        was_attached = self.mux.state == ATTACHED
        self._drop_socket()
        if self._leaving:
            self._closed = True
            if self.on_closed is not None:
                self.on_closed()
            return
        reason = error.strerror if error is not None and error.strerror else "it closed the connection"
        if self._resume and self._redial.again(at_once=was_attached):
            log.debug(f"agent: connection cut ({reason}), connecting again")
            return
        self._lose(
            DomainError(f"the guest's agent is gone: {reason}", hint="--boot-log shows what the guest says.")
        )

    def _lose(self, error: ClocheError) -> None:
        if isinstance(error, ProtocolError) and error.hint is None:
            error = ProtocolError(
                f"the guest does not keep to the protocol: {error.message}",
                hint="Its machine was ended: the agent in it is broken, or something else has taken its place.",
            )
        self.lost = error
        self.close()
        if self.on_lost is None:
            raise error
        self.on_lost(error)
