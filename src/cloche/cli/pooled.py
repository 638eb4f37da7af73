"""``cloche run`` in a machine of the pool (layer 6): taken, told what to run, and looked after as ``exec`` does.

Until the machine has answered nothing of the run has begun: whatever goes wrong before is no failure of the run, which
then starts a machine of its own.
"""

from __future__ import annotations

import os

from cloche import log
from cloche.errors import ClocheError, DomainError
from cloche.host import pool
from cloche.plan.pool import fitting_keys, why_not
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.parser import Parsed
    from cloche.cli.terminal import Terminal
    from cloche.domain.control import claiming
    from cloche.domain.control.client import Control
    from cloche.lean import socket
    from cloche.model.request import RunRequest

#: A supervisor that has not answered so long after its machine was taken is stuck, in seconds.
_PATIENCE_S = 12.0


def why_not_here(parsed: Parsed) -> str:
    """Return what of a command line no machine that waits can do, in a clause; empty for nothing."""
    if parsed.get("pool") is False:
        return "--no-pool was given"
    if parsed.get("detach"):
        return "--detach starts a machine of its own"
    if parsed.get("timings"):
        return "--timings is about a start"
    return ""


def run(parsed: Parsed, request: RunRequest, mask: int, terminal: Terminal) -> int | None:
    """Run the program in a machine of the pool and return its status; None when no machine has taken it."""
    if why_not_here(parsed) or why_not(request) or terminal.beside:
        return None
    claimed = pool.claim(fitting_keys(request, is_root=os.geteuid() == 0))
    if claimed is None:
        return None
    return _use(request, mask, terminal, claimed)


def _use(
    request: RunRequest, mask: int, terminal: Terminal, claimed: tuple[socket.socket, str]
) -> int | None:
    from cloche.domain.control import claiming, wire
    from cloche.domain.control.client import Control
    from cloche.domain.control.fields import store
    from cloche.host.scheduling import current

    connection, ident = claimed
    control = Control(ident, _PATIENCE_S, connection)
    joined = None
    try:
        control.send(wire.encode_request(claiming.Claim.of(len(request.shares), current())))
        _lend(control, request)
        # While the machine wakes up.
        from cloche.cli.joined import Joined

        joined = Joined(ident, control, terminal)
        words = store(claiming.Words(request.argv, request.env, tuple(os.environb.items())))
        begin = _describe(request, mask, terminal)
        _wait_for(control)
        joined.begin(begin, (0, 1, 2, words))
        os.close(words)
    except (ClocheError, OSError) as error:
        # Nothing was begun: what cannot be said has not been heard.
        if joined is not None:
            joined.close()
        control.close()
        log.debug(f"no machine of the pool: {error}")
        return None
    log.debug(f"in the machine {ident} of the pool")
    return joined.run()


def is_missing(parsed: Parsed, request: RunRequest) -> bool:
    """Tell whether a machine of the pool could have taken the run, if one had waited."""
    return not (why_not_here(parsed) or why_not(request))


def _lend(control: Control, request: RunRequest) -> None:
    from cloche.domain.control import claiming, wire

    # A share within another one is put there when that is there.
    for share in sorted(request.shares, key=lambda share: share.target):
        fd = os.open(share.source, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            control.send(
                wire.encode_request(claiming.Lend(share.source, share.target, share.writable)), (fd,)
            )
        finally:
            os.close(fd)


def _wait_for(control: Control) -> None:
    from cloche.domain.control import wire

    packet = control.receive()
    if not packet:
        raise DomainError("its supervisor is gone")
    wire.decode_answer(packet)
    control.set_patience(None)


def _describe(request: RunRequest, mask: int, terminal: Terminal) -> claiming.Begin:
    from cloche.domain.control import claiming
    from cloche.host.caller import ignored_signals, working_directory

    rows, cols = terminal.size() if terminal.wanted else (0, 0)
    return claiming.Begin(
        called=request.name,
        cwd=working_directory(),
        umask=mask,
        ignored=ignored_signals(),
        workdir=request.workdir or "",
        user=request.user or "",
        privileged=request.privileged,
        pids=request.pids or 0,
        strace=request.strace,
        timeout_ms=max(1, round(request.timeout_s * 1000)) if request.timeout_s is not None else 0,
        terminal=terminal.wanted,
        rows=rows,
        cols=cols,
    )
