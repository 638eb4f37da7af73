"""Waiting for a domain's end, stopping it, and following what its program writes (layer 5), from any process."""

from __future__ import annotations

from cloche.domain.control.client import Control
from cloche.domain.control.fields import Nothing
from cloche.domain.control.life import Ended, LogWait, Pause, Resume, Stop, Wait
from cloche.domain.find import find_any
from cloche.errors import ClocheError, DomainError
from cloche.host import records, rundir
from cloche.host.outlog import read_log
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cloche.host.outlog import Entry

#: Longer than any grace a user gives, in milliseconds.
_MOST_MS = 0xFFFF_FFFF


def wait_for_program(wanted: str, timeout_s: float | None = None) -> tuple[int, str]:
    """Wait for the end of a domain's program; return its status as a shell shows it, and why if the domain was ended.

    Raises:
        DomainError: There is no such domain, it did not end in time, or its status is not known.
    """
    ident, running, _ = find_any(wanted)
    if running is not None:
        try:
            with Control(ident, timeout_s) as control:
                ended = control.ask(Wait(), Ended)
            if ended.is_last:
                rundir.wait_for_end(ident)
            return ended.status, ""
        except DomainError as error:
            if timeout_s is not None and "does not answer" in error.message:
                raise DomainError(f"the domain {wanted} did not end within {timeout_s:g} s") from None
            if "has ended" not in error.message:
                raise
        rundir.wait_for_end(ident)
    kept = records.read(ident)
    if kept is None or kept.status is None:
        raise DomainError(
            f"the domain {wanted} has ended, and with what status is not known",
            hint="Its supervisor was killed, or it was not detached, or its record was removed.",
        )
    return kept.status, kept.reason


def stop_domain(ident: str, grace_s: float) -> None:
    """End a domain and return when it has ended: SIGTERM to its programs, and after ``grace_s`` the end of its machine.

    Raises:
        DomainError: It cannot be asked.
    """
    try:
        with Control(ident) as control:
            control.ask(Stop(min(int(grace_s * 1000), _MOST_MS)), Nothing)
    except DomainError as error:
        if "has ended" not in error.message:
            raise
    rundir.wait_for_end(ident)


def pause_domain(ident: str) -> None:
    """Let a domain stand still.

    Raises:
        DomainError: It does not run, or cannot be paused.
    """
    with Control(ident) as control:
        control.ask(Pause(), Nothing)


def resume_domain(ident: str) -> None:
    """Let a domain that was paused go on.

    Raises:
        DomainError: It is not paused.
    """
    with Control(ident) as control:
        control.ask(Resume(), Nothing)


def read_output(ident: str, *, follow: bool = False) -> Iterator[Entry]:
    """Give what a detached domain's program has written; with ``follow`` also what it will write, to the domain's end.

    Raises:
        DomainError: Nothing is kept of such a domain.
    """
    kept = records.read(ident)
    if kept is None:
        raise DomainError(
            f"nothing that the domain {ident} writes is kept",
            hint="`cloche run -d` keeps what a program writes.",
        )
    position = 0
    while True:
        try:
            for entry in read_log(kept.directory, position):
                position = entry.position
                yield entry
        except FileNotFoundError:
            return  # it was removed meanwhile
        if not follow:
            return
        try:
            with Control(ident, None) as control:
                control.ask(LogWait(position), Nothing)
        except ClocheError:
            # It has ended: what it wrote last is there when its run directory is gone.
            rundir.wait_for_end(ident)
            follow = False
