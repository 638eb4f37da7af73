"""``cloche supervise FD`` (layer 6, internal): owns the processes of one domain for a program that uses the API."""

from __future__ import annotations

import os
import socket
from functools import partial

from cloche.domain.launcher import Launcher
from cloche.domain.remote import pack_error, receive_message, send_message, unpack_error
from cloche.domain.timings import Timings
from cloche.errors import ClocheError, UsageError
from cloche.host import rundir
from cloche.host.reactor import READ, Reactor
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from cloche.cli.parser import Parsed
    from cloche.domain.sharing import GuestAnswer
    from cloche.guest.channel import ChannelState
    from cloche.model.guest import Step
    from cloche.model.plan import LaunchPlan


def main(parsed: Parsed) -> int:
    """Serve one domain until the host program closes the connection or the domain ends."""
    if len(parsed.operands) not in (1, 2) or not all(word.isdigit() for word in parsed.operands):
        raise UsageError(
            "`cloche supervise` is started by cloche itself",
            hint="`cloche help` lists what there is for you.",
        )
    os.umask(0o077)  # what it makes is its own; the host program's mask went into the plan
    connection = socket.socket(fileno=int(parsed.operands[0]))
    os.set_inheritable(connection.fileno(), False)
    if len(parsed.operands) == 2:
        return _detached(connection, int(parsed.operands[1]))
    message, _ = receive_message(connection)
    if message is None or message[0] != "start":
        return 125
    with Reactor() as reactor:
        return _Supervisor(reactor, connection, message[1]).serve()


def _detached(connection: socket.socket, words: int) -> int:
    """Serve one domain that outlives the host program, to its end."""
    import pickle

    from cloche.cli.detach import supervise

    with open(words, "rb") as file:
        # The host program's own words, from a file nobody else has.
        request, facts, options = pickle.load(file)  # noqa: S301
    # The host program waits for this process, and must not have to wait for the domain.
    if os.fork() == 0:
        supervise(request, facts, options, connection)
    return 0


class _Supervisor:
    def __init__(self, reactor: Reactor, connection: socket.socket, plan: LaunchPlan) -> None:
        self._reactor = reactor
        self._connection = connection
        self._launcher = Launcher(reactor, plan, Timings())
        self._launcher.ended = self._ended
        self._launcher.ask_guest = self._ask_guest
        self._launcher.ask_paused = self._ask_paused
        self._launcher.ask_channel = self._ask_channel
        self._launcher.ask_hold = self._ask_hold
        self._launcher.ask_programs = self._ask_programs
        self._launcher.hand_over = self._hand_over
        self._launcher.is_remote = True
        self._asked_guest: dict[int, Callable[[Any], None]] = {}
        self._questions = 0
        self._over = False

    def serve(self) -> int:
        try:
            self._launcher.start()
            self._tell(("started", self._launcher.ident))
            self._reactor.register(self._connection.fileno(), READ, self._asked)
            rundir.sweep()
            self._reactor.run_until(lambda: self._over)
        except ClocheError as error:
            self._ended(error)
        finally:
            self._launcher.close()
        return 0

    def _asked(self, events: int) -> None:
        del events
        try:
            message, _ = receive_message(self._connection)
        except OSError:
            message = None  # reset: the host program was killed before it had read everything
        if message is None:
            self._over = True
        elif message[0] == "connect":
            self._connect()
        elif message[0] == "verify":
            self._verify()
        elif message[0] == "console":
            self._tell(("console", self._launcher.console_tail(int(str(message[1])))))
        elif message[0] in ("pause", "resume"):
            self._control(str(message[0]))
        elif message[0] in ("guest", "paused", "channel", "hold", "programs"):
            answer = self._asked_guest.pop(message[1], None)
            if answer is not None:
                answer(message[2])

    def _ask_guest(self, steps: tuple[Step, ...], sync: bool, answer: Callable[[GuestAnswer], None]) -> None:
        """Let the host program do something in the guest: it is the one that talks to the agent."""
        self._ask(answer, "guest", steps, sync)

    def _ask_paused(self, answer: Callable[[bool], None], fail: Callable[[ClocheError], None]) -> None:
        """Let the host program say whether its programs stand still."""
        self._ask(partial(_told, bool, answer, fail), "paused")

    def _ask_channel(
        self, answer: Callable[[ChannelState], None], fail: Callable[[ClocheError], None]
    ) -> None:
        """Let the host program tell what it knows of the conversation with the agent."""
        from cloche.guest.channel import ChannelState

        self._ask(partial(_told, ChannelState, answer, fail), "channel")

    def _ask_hold(self, held: bool, answer: Callable[[], None]) -> None:
        """Let the host program take nothing more from the channel, or go on with it."""
        self._ask(lambda _: answer(), "hold", held)

    def _ask_programs(self, packet: bytes, answer: Callable[[bytes], None]) -> None:
        """Let the host program answer what concerns its programs."""
        self._ask(answer, "programs", packet)

    def _ask(self, answer: Callable[[Any], None], kind: str, *words: object) -> None:
        self._questions += 1
        self._asked_guest[self._questions] = answer
        self._tell((kind, self._questions, *words))

    def _hand_over(self, packet: bytes, client: int, fds: list[int]) -> None:
        """Let it run a program for somebody who has asked here."""
        self._tell(("join", packet, client), fds)

    def _connect(self) -> None:
        try:
            agent = self._launcher.connect()
        except OSError as error:
            self._tell(("connected", error.errno or 0))
            return
        self._tell(("connected", 0), [agent.fileno()])
        agent.close()

    def _control(self, what: str) -> None:
        def done(error: ClocheError | None) -> None:
            self._tell(("controlled", pack_error(error) if error else None))

        try:
            control = self._launcher.control
        except ClocheError as error:
            done(error)
            return
        (control.pause if what == "pause" else control.resume)(done)

    def _verify(self) -> None:
        try:
            self._launcher.verify()
            # A machine that does not come up from its template gets another supervisor.
            self._launcher.confine()
        except ClocheError as error:
            self._ended(error)
            return
        if not self._over:
            self._tell(("verified",))

    def _ended(self, error: ClocheError) -> None:
        self._over = True
        self._tell(("ended", pack_error(error)))

    def _tell(self, message: tuple[object, ...], fds: Sequence[int] = ()) -> None:
        try:
            send_message(self._connection, message, fds)
        except OSError:
            self._over = True  # the host program is gone: there is nobody to tell


def _told(
    kind: type, answer: Callable[[Any], None], fail: Callable[[ClocheError], None], said: object
) -> None:
    """Hand on what the host program has said: what was asked for, or an error."""
    if isinstance(said, kind):
        answer(said)
    else:
        fail(unpack_error(said))  # type: ignore[arg-type]
