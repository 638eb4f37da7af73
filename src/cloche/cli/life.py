"""``cloche wait|stop|kill|rename|rm`` (layer 6): what happens to domains that run, and to what is left of them."""

from __future__ import annotations

import sys

from cloche.domain.find import find_any, find_domain
from cloche.errors import ClocheError, DomainError, UsageError
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.cli.parser import Parsed

_GRACE_S = 10.0
_SIGKILL = 9


def wait(parsed: Parsed) -> int:
    """Wait for a domain's program and end as it did."""
    from cloche import log
    from cloche.domain.following import wait_for_program

    (wanted,) = _operands(parsed, 1)
    timeout = parsed.get("timeout")
    status, reason = wait_for_program(wanted, timeout)  # type: ignore[arg-type]
    if reason:
        log.notice(reason)
    return status


def stop(parsed: Parsed) -> int:
    """End domains, gracefully first; returns when they have ended."""
    from cloche.domain.following import stop_domain

    grace = float(parsed.get("grace", _GRACE_S))  # type: ignore[arg-type]
    return _each(parsed, lambda wanted: stop_domain(find_domain(wanted).ident, grace))


def kill(parsed: Parsed) -> int:
    """Send a signal to the program of domains."""
    from cloche.domain.control.client import Control
    from cloche.domain.control.fields import Nothing
    from cloche.domain.control.life import Kill

    signo = int(parsed.get("signal", _SIGKILL))  # type: ignore[call-overload]

    def send(wanted: str) -> None:
        with Control(find_domain(wanted).ident) as control:
            control.ask(Kill(signo), Nothing)

    return _each(parsed, send)


def pause(parsed: Parsed) -> int:
    """Let domains stand still: they keep their memory and take no CPU."""
    from cloche.domain.following import pause_domain

    return _each(parsed, lambda wanted: pause_domain(find_domain(wanted).ident))


def resume(parsed: Parsed) -> int:
    """Let domains that were paused go on."""
    from cloche.domain.following import resume_domain

    return _each(parsed, lambda wanted: resume_domain(find_domain(wanted).ident))


def rename(parsed: Parsed) -> int:
    """Call a running domain something else."""
    from cloche.domain.control.client import Control
    from cloche.domain.control.fields import Nothing
    from cloche.domain.control.life import Rename
    from cloche.host.names import check_name

    wanted, name = _operands(parsed, 2)
    with Control(find_domain(wanted).ident) as control:
        control.ask(Rename(check_name(name)), Nothing)
    return 0


def remove(parsed: Parsed) -> int:
    """Forget detached domains that have ended: their logs and how they ended."""
    from cloche.host import records

    if parsed.get("all"):
        if parsed.operands:
            raise UsageError("--all and a domain's name contradict each other", hint="Give one of them.")
        from cloche.host.rundir import find_running

        running = {one.ident for one in find_running()}
        for kept in records.read_all():
            if kept.ident not in running:
                records.remove(kept.ident)
        return 0

    def forget(wanted: str) -> None:
        ident, running, _ = find_any(wanted)
        if running is not None:
            raise DomainError(f"the domain {wanted} runs", hint=f"End it first: cloche stop {wanted}")
        records.remove(ident)

    return _each(parsed, forget)


def _operands(parsed: Parsed, count: int) -> tuple[str, ...]:
    if len(parsed.operands) != count:
        verb = " ".join(parsed.path)
        raise UsageError(
            f"`cloche {verb}` takes {count} argument{'s' if count > 1 else ''}",
            hint=f"Write: cloche {verb} {parsed.verb.operands}",
        )
    return parsed.operands


def _each(parsed: Parsed, work: Callable[[str], None]) -> int:
    """Do it for every domain that was named; what fails for one is said, and the others get theirs."""
    if not parsed.operands:
        verb = " ".join(parsed.path)
        raise UsageError(
            f"`cloche {verb}` needs a domain", hint=f"Write: cloche {verb} {parsed.verb.operands}"
        )
    status = 0
    for wanted in parsed.operands:
        try:
            work(wanted)
        except ClocheError as error:
            if len(parsed.operands) == 1:
                raise
            from cloche.cli.main import report

            sys.stdout.flush()
            report(error)
            status = int(error.exit_code)
    return status
