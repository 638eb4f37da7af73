"""``cloche run --detach`` (layer 6): a domain that outlives the command line which has started it."""

from __future__ import annotations

import gc
import os
import sys

from cloche import log
from cloche.domain.control import wire
from cloche.domain.detached import GO_ON, Begun, Options, serve
from cloche.errors import DomainError, HostError, UsageError
from cloche.host.facts import collect_facts
from cloche.lean import socket
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.cli.parser import Parsed
    from cloche.domain.snapshotting import Again
    from cloche.model.facts import HostFacts
    from cloche.model.request import RunRequest

#: Options of a run whose output has nowhere to go, or that ask somebody who is not there.
_FOREGROUND = ("shell_on_failure", "boot_log", "agent_log", "timings")
_CALLER = 3


def main(parsed: Parsed) -> int:
    """Start the domain, print its name when its program runs, and return."""
    for key in _FOREGROUND:
        if parsed.get(key):
            raise UsageError(
                f"--{key.replace('_', '-')} cannot be given together with --detach: nobody would see it",
                hint="Leave out one of them.",
            )
    from cloche.cli.profile_choice import choose_profile
    from cloche.domain.request import build_request

    parsed.values["profile"] = choose_profile(parsed)
    request = build_request(parsed.values, parsed.operands)
    options = Options(
        terminal=bool(parsed.get("tty")),
        interactive=bool(parsed.get("interactive")),
        log_mib=int(parsed.get("log_size", Options._field_defaults["log_mib"])),  # type: ignore[call-overload]
    )
    begun = start(request, options).wait()
    sys.stdout.write(f"{begun.name or begun.ident}\n")
    if begun.wants_template:
        from cloche.domain.template import make_in_background

        make_in_background(request)
    return 0


class Starting:
    """A supervisor, a child of this process, that starts a domain (``snapshotting.Beginning``)."""

    def __init__(self, connection: socket.socket, child: int) -> None:
        self._socket = connection
        self._child = child

    def go_on(self) -> None:
        """Say that what it waits for is there."""
        try:
            self._socket.send(GO_ON)
        except OSError:
            pass  # it has ended, and why is told to who waits for it

    def give_up(self) -> None:
        """Let it end before it has begun anything."""
        self._socket.close()
        os.waitpid(self._child, 0)

    def wait(self) -> Begun:
        """Return when its program runs.

        Raises:
            ClocheError: It could not be started.
        """
        packet = self._socket.recv(wire.MAX_PACKET)
        self._socket.close()
        if not packet:
            os.waitpid(self._child, 0)
            raise DomainError(
                "the domain's supervisor has ended before the program was started",
                hint="Somebody or the kernel (for want of memory?) has ended it;"
                " `cloche run` without -d may tell more.",
            )
        return wire.read_answer(packet, Begun)


def start(what: RunRequest | Again, options: Options) -> Starting:
    """Have a supervisor in a process of its own start a domain.

    Raises:
        ClocheError: It could not be started.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mask = os.umask(0o077)
    facts = collect_facts()._replace(umask=mask)
    try:
        child = os.fork()
    except OSError as error:
        raise HostError(f"cannot start the domain's supervisor: {error.strerror}") from None
    if child == 0:
        ours.close()
        supervise(what, facts, options, theirs)
    theirs.close()
    return Starting(ours, child)


def supervise(request: RunRequest | Again, facts: HostFacts, options: Options, caller: socket.socket) -> None:
    """Be the domain's supervisor, in a process of its own that has nothing of the caller's but this socket."""
    go_alone(caller, lambda caller: serve(request, facts, options, caller, begun))


def go_alone(caller: socket.socket, work: Callable[[socket.socket], None]) -> None:
    """Do the work of a supervisor in this process, a child that was just made, and end it."""
    status = 125
    try:
        os.setsid()
        if caller.fileno() != _CALLER:
            os.dup2(caller.fileno(), _CALLER, inheritable=False)
            caller.close()
            caller = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, _CALLER)
        os.closerange(_CALLER + 1, os.sysconf("SC_OPEN_MAX"))
        _let_go(0, 1)
        gc.enable()
        work(caller)
        status = 0
    except OSError as error:
        log.notice(f"the domain's supervisor has failed: {error}")
    except BaseException as error:  # noqa: BLE001 - nothing above it would tell anybody
        log.notice(f"the domain's supervisor has failed, which is a mistake in cloche: {error!r}")
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(status)


def begun() -> None:
    """Let go of the rest: errors are in the log from here on, and the caller's file system can be unmounted."""
    _let_go(2)
    os.chdir("/")


def _let_go(*numbers: int) -> None:
    """Put /dev/null in the place of standard streams."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for number in numbers:
        os.dup2(null, number)
    os.close(null)
