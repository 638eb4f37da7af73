"""``cloche ps`` (layer 6): the caller's running domains."""

from __future__ import annotations

import os
import sys
import time

from cloche.cli.listing import may_color, print_json, red
from cloche.domain.control.client import Control
from cloche.domain.control.life import AskLife, LifeNow
from cloche.domain.control.status import Ask, Status
from cloche.errors import ClocheError
from cloche.host.pids import started_ago_s
from cloche.host.rundir import find_running
from cloche.host.text import escape_untrusted
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.parser import Parsed
    from cloche.host.records import Kept
    from cloche.host.rundir import Running

    Told = tuple[Status, LifeNow]

_HEADINGS = ("DOMAIN", "NAME", "STATE", "PROGRAM", "DRIVER", "ACCEL", "SINCE", "MEMORY", "SHARES")
#: A supervisor that does not answer in time (it may be stopped) is listed without what it knows, in seconds.
_PATIENCE_S = 2.0
_LONGEST_PROGRAM = 60


def main(parsed: Parsed) -> int:
    """List the domains that run; there may be none."""
    found = [(running, _ask(running)) for running in find_running(waiting=bool(parsed.get("all")))]
    ended = _ended({running.ident for running, _ in found}) if parsed.get("all") else ()
    if parsed.get("json"):
        rows = [_as_json(running, told) for running, told in found]
        print_json([*rows, *map(_ended_as_json, ended)])
    else:
        color = may_color()
        sys.stdout.write(in_words(found, ended, color=color))
    return 0


def _ask(running: Running) -> Told | None:
    try:
        with Control(running.ident, _PATIENCE_S) as control:
            return control.ask(Ask(), Status), control.ask(AskLife(), LifeNow)
    except ClocheError:
        return None  # it has just begun or ended, or does not answer: the table shows that


def _ended(running: set[str]) -> tuple[Kept, ...]:
    """Return the detached domains that have ended; one whose supervisor was killed is among them."""
    from cloche.host.records import read_all

    return tuple(kept for kept in read_all() if kept.ident not in running)


def _as_json(running: Running, told: Told | None) -> dict[str, object]:
    ago = started_ago_s(running.start)
    entry: dict[str, object] = {
        "domain": running.ident,
        "name": running.name or None,
        "warden": running.warden,
        "since": round(time.time() - ago, 2),
        "insecure": list(running.insecure),
        "answers": told is not None,
    }
    if told is not None:
        status, life = told
        entry |= {
            "state": life.state,
            "detached": life.detached,
            "programs": life.programs,
            "terminal": life.terminal,
            "interactive": life.interactive,
            "program": [escape_untrusted(word, 4096) for word in status.program],
            "driver": status.driver,
            "isolation": status.isolation,
            "accelerator": status.accelerator or None,
            "memory_mib": status.memory_mib or None,
            "cpus": status.cpus or None,
            "shares": status.shares,
            "takes_shares": status.takes_shares,
        }
    return entry


def _ended_as_json(kept: Kept) -> dict[str, object]:
    return {
        "domain": kept.ident,
        "name": kept.name or None,
        "state": "ended",
        "detached": True,
        "program": [escape_untrusted(word, 4096) for word in kept.program],
        "since": round(kept.began, 2),
        "ended": kept.ended and round(kept.ended, 2),
        "status": kept.status,
        "reason": kept.reason or None,
    }


def in_words(
    found: list[tuple[Running, Told | None]], ended: tuple[Kept, ...] = (), *, color: bool = False
) -> str:
    """Return the table for people."""
    rows = [_HEADINGS, *(_row(running, told) for running, told in found), *map(_ended_row, ended)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = []
    given_up = ((), *(running.insecure for running, _ in found), *(() for _ in ended))
    for row, insecure in zip(rows, given_up, strict=True):
        lines.append("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())
        for part in insecure:
            word = escape_untrusted(os.fsencode(part), 80)
            lines.append(red(f"  GIVEN UP by --insecure-no-jail={word}", color=color))
    return "\n".join(lines) + "\n"


def _ended_row(kept: Kept) -> tuple[str, ...]:
    state = "killed" if kept.ended is None else f"ended ({'?' if kept.status is None else kept.status})"
    program = escape_untrusted(b" ".join(kept.program), _LONGEST_PROGRAM)
    since = _since(max(0.0, time.time() - kept.began))
    return (kept.ident, kept.name or "-", state, program, "-", "-", since, "-", "-")


def _row(running: Running, told: Told | None) -> tuple[str, ...]:
    since = _since(started_ago_s(running.start))
    name = running.name or "-"
    if told is None:
        return (running.ident, name, "(does not answer)", "-", "-", "-", since, "-", "-")
    status, life = told
    program = escape_untrusted(b" ".join(status.program), _LONGEST_PROGRAM) if status.program else "(API)"
    memory = f"{status.memory_mib} MiB" if status.memory_mib else "-"
    return (
        running.ident,
        name,
        life.state,
        program,
        status.driver,
        status.accelerator or "-",
        since,
        memory,
        str(status.shares),
    )


def _since(ago_s: float) -> str:
    """Return how long ago something was, in its two largest units."""
    seconds = int(ago_s)
    for unit, size, smaller, small in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if seconds >= size:
            return f"{seconds // size}{unit} {seconds % size // small}{smaller}"
    return f"{seconds}s"
