"""A launcher in a process of its own (layer 5): for host programs that have threads and must not be forked.

The host program plans and talks to the agent itself; only the processes of the domain are owned by the supervisor
(``cloche supervise``), a fresh interpreter started by posix_spawn. Both sides of the socket are this very version of
cloche, parent and child; nobody else can reach it.

One message is ``length:u32`` and a pickled tuple whose first item is its name, with some descriptors.
"""

from __future__ import annotations

import os
import pickle
import socket
import struct
import sys
from contextlib import suppress
from functools import partial

from cloche import errors
from cloche.errors import ClocheError, DomainError, HostError, LaunchError
from cloche.host.reactor import READ
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from cloche.domain.control.talk import Link
    from cloche.domain.detached import Options
    from cloche.domain.programs import Programs
    from cloche.domain.sharing import GuestAnswer
    from cloche.domain.snapshotting import Again
    from cloche.domain.timings import Timings
    from cloche.drivers.contract import Control
    from cloche.guest.channel import ChannelState
    from cloche.host.reactor import Reactor
    from cloche.model.facts import HostFacts
    from cloche.model.guest import Step
    from cloche.model.plan import LaunchPlan
    from cloche.model.request import RunRequest

SUPERVISOR_FD, WORDS_FD = 3, 4
_GONE_HINT = "Somebody or the kernel (for want of memory?) has ended it; start the sandbox anew."
_LENGTH = struct.Struct("<I")
_MAX_MESSAGE = 64 << 20
#: A client and what it has sent.
_MOST_FDS = 5
#: What the supervisor asks of the host program.
_ASKED = ("guest", "paused", "channel", "hold", "programs", "join")
#: The distribution's interpreter: a version manager's shim would cost more than the whole start.
_INTERPRETER = "/usr/bin/python3"


def send_message(connection: socket.socket, message: tuple[object, ...], fds: Sequence[int] = ()) -> None:
    """Send one message, with descriptors if there are any."""
    body = pickle.dumps(message, protocol=5)
    socket.send_fds(connection, [_LENGTH.pack(len(body))], fds)
    connection.sendall(body)


def receive_message(connection: socket.socket) -> tuple[tuple[Any, ...] | None, list[int]]:
    """Receive one message and its descriptors; None at the end of the connection."""
    head, fds, _, _ = socket.recv_fds(connection, _LENGTH.size, _MOST_FDS, socket.MSG_CMSG_CLOEXEC)
    for fd in fds:
        os.set_inheritable(fd, False)
    head += _receive_exactly(connection, _LENGTH.size - len(head)) if head else b""
    if len(head) < _LENGTH.size:
        return None, fds
    length = _LENGTH.unpack(head)[0]
    if length > _MAX_MESSAGE:
        raise DomainError("the supervisor's connection is damaged")
    body = _receive_exactly(connection, length)
    # The other end is this program's own parent or child, over a socket pair nobody else has.
    return (pickle.loads(body), fds) if len(body) == length else (None, fds)  # noqa: S301


def _receive_exactly(connection: socket.socket, size: int) -> bytes:
    pieces = []
    while size:
        piece = connection.recv(size)
        if not piece:
            break
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def pack_error(error: ClocheError) -> tuple[str, str, str | None, tuple[str, ...]]:
    """Return what travels of an error."""
    return type(error).__name__, error.message, error.hint, error.detail


def unpack_error(packed: tuple[str, str, str | None, tuple[str, ...]]) -> ClocheError:
    """Return the error of the same class."""
    name, message, hint, detail = packed
    kind: type[ClocheError] = getattr(errors, name, ClocheError)
    error = kind.__new__(kind)
    ClocheError.__init__(error, message, hint=hint, detail=detail)
    return error


class RemoteControl:
    """See ``drivers.contract.Control``; saving is the supervisor's own business."""

    def __init__(self, launcher: RemoteLauncher) -> None:
        self._launcher = launcher

    def pause(self, done: Callable[[ClocheError | None], None]) -> None:
        """Stop the guest's clock and CPUs."""
        done(self._launcher.ask_control("pause"))

    def resume(self, done: Callable[[ClocheError | None], None]) -> None:
        """Go on after ``pause``."""
        done(self._launcher.ask_control("resume"))

    def save(self, state: int, done: Callable[[ClocheError | None], None]) -> None:
        """Refuse: whoever wants to save the machine asks the supervisor over the control socket."""
        del state
        done(DomainError("the supervisor of a sandbox saves it, not the program that uses it"))

    def close(self) -> None:
        """Do nothing: nothing is held."""


class RemoteLauncher:
    """Does for a ``Domain`` what ``Launcher`` does, through a supervisor process. Same interface."""

    def __init__(self, reactor: Reactor, plan: LaunchPlan, timings: Timings) -> None:
        self.plan = plan
        self.ended: Callable[[LaunchError | DomainError], None] = _raise
        self.ask_guest: Callable[[tuple[Step, ...], bool, Callable[[GuestAnswer], None]], None]
        self.ask_paused: Callable[[Callable[[bool], None], Callable[[ClocheError], None]], None]
        self.ask_channel: Callable[[Callable[[ChannelState], None], Callable[[ClocheError], None]], None]
        self.ask_hold: Callable[[bool, Callable[[], None]], None]
        self.ident = ""
        self.name = plan.name
        self.programs: Programs | None = None
        self._reactor = reactor
        self._timings = timings
        self._socket: socket.socket | None = None
        self._pid = 0
        self._tail: list[str] = []
        self._links: set[Link] = set()

    def start(self) -> None:
        """Start the supervisor and let it start the domain.

        Raises:
            ClocheError: What the supervisor reported, or that it could not be started.
        """
        ours, theirs = socket.socketpair()
        self._socket = ours
        try:
            self._pid = _spawn_supervisor(theirs)
        except OSError as error:
            raise HostError(
                f"cannot start {_INTERPRETER}: {error.strerror}", hint="Install the package python3."
            ) from error
        finally:
            theirs.close()
        send_message(ours, ("start", self.plan))
        answer = self._ask("started")
        self.ident = str(answer[1])
        self._timings.mark("supervisor started")
        self._reactor.register(ours.fileno(), READ, self._hear)

    def connect(self) -> socket.socket:
        """Let the supervisor connect to the agent's byte stream and hand the connection over.

        Raises:
            OSError: It cannot; that the domain has ended is told by ``ended``, as ever.
        """
        if self._socket is None:
            raise ConnectionRefusedError(111, "the domain has ended")
        try:
            send_message(self._socket, ("connect",))
            answer = self._ask("connected")
        except ClocheError as error:
            # Not out of here: after a cut this is asked for by the loop, which nobody catches anything from.
            self._reactor.call_soon(partial(self._over, error))
            raise ConnectionRefusedError(111, error.message) from None
        fds: list[int] = answer[-1]
        if not fds:
            raise OSError(int(str(answer[1])), os.strerror(int(str(answer[1]))))
        return socket.socket(fileno=fds[0])

    def verify(self) -> None:
        """Let the supervisor look whether every process has its filters (see ``Launcher.verify``).

        Raises:
            LaunchError: One has not.
        """
        assert self._socket is not None
        send_message(self._socket, ("verify",))
        self._ask("verified")

    @property
    def control(self) -> Control:
        """How the machine is paused and goes on: the supervisor does it."""
        return RemoteControl(self)

    def ask_control(self, what: str) -> ClocheError | None:
        """Have the supervisor ``pause`` or ``resume`` the machine; return why it has not."""
        assert self._socket is not None
        send_message(self._socket, (what,))
        packed: Any = self._ask("controlled")[1]
        return unpack_error(packed) if packed else None

    def watch_console(self, sink: Callable[[bytes], None]) -> None:
        """Do nothing: the console stays in the supervisor, which keeps its last lines."""

    def console_tail(self, lines: int = 8) -> list[str]:
        """Return the last lines of the guest's console, made safe to show."""
        if self._socket is not None:
            send_message(self._socket, ("console", lines))
            self._tail = list(self._ask("console")[1])
        return self._tail

    def _ask(self, expected: str) -> tuple[Any, ...]:
        assert self._socket is not None
        message, fds = receive_message(self._socket)
        while message is not None and message[0] in _ASKED:
            # Asked for just before our own question came there.
            self._reactor.call_soon(partial(self._serve, message, fds))
            message, fds = receive_message(self._socket)
        if message is None:
            raise DomainError("the domain's supervisor is gone", hint=_GONE_HINT)
        if message[0] == "ended":
            raise unpack_error(message[1])
        if message[0] != expected:
            raise DomainError(f"the supervisor answered {message[0]!r}")
        return (*message, fds)

    def _hear(self, events: int) -> None:
        del events
        assert self._socket is not None
        message, fds = receive_message(self._socket)
        if message is not None and message[0] in _ASKED:
            self._serve(message, fds)
            return
        error: ClocheError = DomainError("the domain's supervisor is gone", hint=_GONE_HINT)
        if message is not None and message[0] == "ended":
            error = unpack_error(message[1])
        self._over(error)

    def _over(self, error: ClocheError) -> None:
        if self._socket is not None:
            ended = self.ended
            self.close()
            ended(error)  # type: ignore[arg-type]

    def in_turn(
        self,
        work: Callable[[Callable[[], None], Callable[[ClocheError], None]], None],
        done: Callable[[], None],
        fail: Callable[[ClocheError], None],
    ) -> None:
        """Do something: what has to be done one after the other the supervisor does."""
        work(done, fail)

    def _serve(self, message: tuple[Any, ...], fds: list[int]) -> None:
        """Do in the guest, or tell of it, what somebody has asked the supervisor for."""
        kind, number, *rest = message
        if kind == "join":
            self._join(number, rest[0], fds)
            return

        def answer(said: GuestAnswer | ChannelState | ClocheError | bytes | bool) -> None:
            packed = pack_error(said) if isinstance(said, ClocheError) else said
            if self._socket is not None:
                with suppress(OSError):  # the supervisor is gone, which is heard elsewhere
                    send_message(self._socket, (kind, number, packed))

        if kind == "guest":
            self.ask_guest(rest[0], rest[1], answer)
        elif kind == "paused":
            self.ask_paused(answer, answer)
        elif kind == "channel":
            self.ask_channel(answer, answer)
        elif kind == "hold":
            self.ask_hold(rest[0], lambda: answer(True))
        else:
            self._ask_programs(rest[0], answer)

    def _ask_programs(self, packet: bytes, answer: Callable[[bytes], None]) -> None:
        """Answer what a client of the supervisor's has asked about the programs."""
        from cloche.domain.control import wire

        def fail(error: ClocheError) -> None:
            answer(wire.encode_failure(error))

        try:
            request = wire.decode(packet, 0, wire.OF_PROGRAMS)
            request.serve(self, [], lambda said: answer(wire.encode_answer(said)), fail)
        except ClocheError as error:
            fail(error)

    def _join(self, packet: bytes, client: int, fds: list[int]) -> None:
        """Run a program for a client of the supervisor's, whose connection and streams came along."""
        from cloche.domain.control import talk, wire
        from cloche.domain.control.joining import begin

        connection, *streams = fds
        link = talk.Link(self._reactor, socket.socket(fileno=connection), client, self._links.discard)
        self._links.add(link)
        try:
            begin(wire.decode(packet, len(streams), wire.CONVERSATIONS), self, streams, link)
        finally:
            for fd in streams:
                os.close(fd)

    def close(self, *, wait: bool = True) -> None:
        """End the supervisor and the domain, and wait until both are gone. May be called twice."""
        del wait  # the supervisor is this program's child and must be reaped
        for link in list(self._links):
            link.close()
        if self._socket is not None:
            self._reactor.unregister(self._socket.fileno())
            self._socket.close()
            self._socket = None
        if self._pid:
            with suppress(ChildProcessError):  # the host program ignores SIGCHLD: the kernel has waited
                os.waitpid(self._pid, 0)
            self._pid = 0


def start_detached(request: RunRequest | Again, facts: HostFacts, options: Options) -> tuple[str, str]:
    """Start a domain that outlives this program, as ``cloche run --detach`` does; return its identity and name.

    Raises:
        ClocheError: It could not be started.
    """
    from cloche.domain.control import wire
    from cloche.domain.detached import Begun

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    words = os.memfd_create("request", os.MFD_CLOEXEC)
    with ours, open(words, "w+b") as file:
        pickle.dump((request, facts, options), file)
        file.flush()
        os.lseek(words, 0, os.SEEK_SET)
        try:
            with theirs:
                pid = _spawn_supervisor(theirs, words)
        except OSError as error:
            raise HostError(
                f"cannot start {_INTERPRETER}: {error.strerror}", hint="Install the package python3."
            ) from error
        with suppress(ChildProcessError):  # the host program ignores SIGCHLD: the kernel has waited
            os.waitpid(pid, 0)
        packet = ours.recv(wire.MAX_PACKET)
    if not packet:
        raise DomainError("the domain's supervisor has ended before the program was started", hint=_GONE_HINT)
    begun = wire.read_answer(packet, Begun)
    return begun.ident, begun.name


def _spawn_supervisor(connection: socket.socket, words: int = -1) -> int:
    source = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    program = (
        f"import sys; sys.path.insert(0, {source!r}); from cloche.cli.main import main; sys.exit(main())"
    )
    argv = [_INTERPRETER, "-I", "-S", "-c", program, "supervise", str(SUPERVISOR_FD)]
    if words >= 0:
        argv.append(str(WORDS_FD))
    import fcntl

    fd = fcntl.fcntl(connection.fileno(), fcntl.F_DUPFD_CLOEXEC, WORDS_FD + 1)
    copy = fcntl.fcntl(words, fcntl.F_DUPFD_CLOEXEC, WORDS_FD + 1) if words >= 0 else -1
    actions: list[tuple[object, ...]] = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
        (os.POSIX_SPAWN_DUP2, 0, 1),
        (os.POSIX_SPAWN_DUP2, fd, SUPERVISOR_FD),
    ]
    if copy >= 0:
        actions.append((os.POSIX_SPAWN_DUP2, copy, WORDS_FD))
    keep = (
        "HOME",
        "XDG_CACHE_HOME",
        "XDG_RUNTIME_DIR",
        "XDG_DATA_HOME",
        "XDG_STATE_HOME",
        "PATH",
        "LANG",
        "LC_ALL",
    )
    env = {name: os.environ[name] for name in keep if name in os.environ}
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
        # Its own session: a Ctrl-C in a notebook's terminal is the host program's to handle.
        return os.posix_spawn(_INTERPRETER, argv, env, file_actions=actions, setsid=True)
    finally:
        os.close(fd)
        if copy >= 0:
            os.close(copy)


def _raise(error: LaunchError | DomainError) -> None:
    raise error
