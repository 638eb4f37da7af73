"""``cloche ps`` (layer 6): the caller's running domains."""

from __future__ import annotations

import json
import os
import sys
import time

from cloche.domain.control.client import Control
from cloche.domain.control.status import Ask, Status
from cloche.errors import ClocheError
from cloche.host.pids import started_ago_s
from cloche.host.rundir import find_running
from cloche.host.text import escape_untrusted
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.parser import Parsed
    from cloche.host.rundir import Running

_HEADINGS = ("DOMAIN", "PROGRAM", "DRIVER", "ACCEL", "SINCE", "MEMORY", "SHARES")
_RED, _PLAIN = "\033[31m", "\033[0m"
#: A supervisor that does not answer in time (it may be stopped) is listed without what it knows, in seconds.
_PATIENCE_S = 2.0
_LONGEST_PROGRAM = 60


def main(parsed: Parsed) -> int:
    """List the domains that run; there may be none."""
    found = [(running, _ask(running)) for running in find_running()]
    if parsed.get("json"):
        json.dump([_as_json(running, status) for running, status in found], sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        sys.stdout.write(in_words(found, color=sys.stdout.isatty() and not os.environ.get("NO_COLOR")))
    return 0


def _ask(running: Running) -> Status | None:
    try:
        with Control(running.ident, _PATIENCE_S) as control:
            return control.ask(Ask(), Status.read)
    except ClocheError:
        return None  # it has just begun or ended, or does not answer: the table shows that


def _as_json(running: Running, status: Status | None) -> dict[str, object]:
    ago = started_ago_s(running.start)
    entry: dict[str, object] = {
        "domain": running.ident,
        "warden": running.warden,
        "since": round(time.time() - ago, 2),
        "insecure": list(running.insecure),
        "answers": status is not None,
    }
    if status is not None:
        entry |= {
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


def in_words(found: list[tuple[Running, Status | None]], *, color: bool = False) -> str:
    """Return the table for people."""
    rows = [_HEADINGS, *(_row(running, status) for running, status in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = []
    for row, insecure in zip(rows, ((), *(running.insecure for running, _ in found)), strict=True):
        lines.append("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())
        for part in insecure:
            word = escape_untrusted(os.fsencode(part), 80)
            lines.append(_red(f"  GIVEN UP by --insecure-no-jail={word}", color=color))
    return "\n".join(lines) + "\n"


def _row(running: Running, status: Status | None) -> tuple[str, ...]:
    since = _since(started_ago_s(running.start))
    if status is None:
        return (running.ident, "(does not answer)", "-", "-", since, "-", "-")
    program = escape_untrusted(b" ".join(status.program), _LONGEST_PROGRAM) if status.program else "(API)"
    memory = f"{status.memory_mib} MiB" if status.memory_mib else "-"
    return (
        running.ident,
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


def _red(line: str, *, color: bool) -> str:
    return f"{_RED}{line}{_PLAIN}" if color else line
