"""``cloche stats``, ``top`` and ``inspect`` (layer 6): what domains use, and what they are."""

from __future__ import annotations

import os
import sys
import time

from cloche.cli.listing import print_json
from cloche.domain.find import find_any, find_domain
from cloche.domain.numbers import read_numbers
from cloche.errors import UsageError
from cloche.host.reactor import Reactor
from cloche.host.rundir import find_running
from cloche.host.text import escape_untrusted, format_size
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.parser import Parsed
    from cloche.domain.numbers import Numbers
    from cloche.host.rundir import Running

_HEADINGS = ("DOMAIN", "NAME", "CPU", "TIME", "MEMORY", "GUEST USES", "READ", "WRITTEN", "PROCESSES")
_HOME, _CLEAR_LINE, _CLEAR_REST = "\033[H", "\033[K", "\033[J"
_INTERVAL_S = 2.0

Row = tuple[str, ...]


def stats(parsed: Parsed) -> int:
    """Print once what domains use."""
    chosen = [find_domain(word) for word in parsed.operands] or list(find_running())
    found = [(running, read_numbers(running)) for running in chosen]
    if parsed.get("json"):
        print_json([_as_json(running, numbers) for running, numbers in found])
    else:
        sys.stdout.write(_table([_row(running, numbers, None) for running, numbers in found]))
    return 0


def top(parsed: Parsed) -> int:
    """Print it again and again, with what was used in between; Ctrl-C ends it."""
    interval = float(parsed.get("interval", _INTERVAL_S))  # type: ignore[arg-type]
    times = parsed.get("times")
    on_terminal = sys.stdout.isatty()
    reactor = Reactor()
    before: dict[str, float] = {}
    at = time.monotonic()
    shown = 0
    while True:
        rows = []
        now = time.monotonic()
        used = {}
        for running in find_running():
            numbers = read_numbers(running)
            used[running.ident] = numbers.cpu_s
            earlier = before.get(running.ident)
            share = None if earlier is None or now <= at else (numbers.cpu_s - earlier) / (now - at)
            rows.append((share or 0.0, _row(running, numbers, share)))
        before, at = used, now
        rows.sort(key=lambda pair: pair[0], reverse=True)
        text = _table([row for _, row in rows])
        if on_terminal:
            text = _HOME + text.replace("\n", f"{_CLEAR_LINE}\n") + _CLEAR_REST
        sys.stdout.write(text)
        sys.stdout.flush()
        shown += 1
        if times is not None and shown >= int(times):  # type: ignore[call-overload]
            return 0
        reactor.run_until(lambda: False, interval)


def inspect(parsed: Parsed) -> int:
    """Print plan and state of a domain as JSON; of one that has ended, what is kept of it."""
    if parsed.get("stage"):
        return _show_stage(parsed)
    if len(parsed.operands) != 1 or "root" in parsed.values:
        raise UsageError(
            "`cloche inspect` takes one domain, or --stage",
            hint="Write: cloche inspect DOMAIN, or cloche inspect --stage",
        )
    ident, running, kept = find_any(parsed.operands[0])
    if running is None:
        assert kept is not None
        from cloche.domain.inspection import plain

        print_json({"domain": ident, "state": "ended", **plain(kept._asdict())})  # type: ignore[dict-item]
        return 0
    from cloche.domain.control.client import Control
    from cloche.domain.control.fields import Nothing
    from cloche.domain.control.numbers import Inspect

    fd = os.memfd_create("inspect", os.MFD_CLOEXEC)
    with Control(ident) as control, open(fd, "r+b") as file:
        control.ask(Inspect(), Nothing, (fd,))
        file.seek(0)
        sys.stdout.write(file.read().decode())
    return 0


def _show_stage(parsed: Parsed) -> int:
    """Print what a guest sees of this host, or of the system in a directory."""
    from cloche.host.facts import path_facts
    from cloche.plan.shown import describe_stage
    from cloche.plan.stage import stage_candidates

    if parsed.operands:
        raise UsageError("--stage is about the host, and not about a domain", hint="Leave one of them out.")
    root = str(parsed.get("root", "")).rstrip("/")
    if root and not os.path.isdir(root):
        raise UsageError(f"--root {root}: there is no such directory", hint="Name the root of a system.")
    rows = describe_stage(path_facts(stage_candidates(), root))
    if parsed.get("json"):
        print_json([row._asdict() for row in rows])
        return 0
    shown = [row for row in rows if row.how != "absent"]
    widths = [max(len(getattr(row, field)) for row in shown) for field in ("how", "path")]
    for row in shown:
        line = f"{row.how:{widths[0]}}  {row.path:{min(widths[1], 32)}}  {row.why}"
        print(escape_untrusted(os.fsencode(line), 400))
    return 0


def _as_json(running: Running, numbers: Numbers) -> dict[str, object]:
    fields: dict[str, object] = numbers._asdict()
    fields["guest"] = numbers.guest._asdict() if numbers.guest is not None else None
    return {"domain": running.ident, "name": running.name or None, **fields}


def _row(running: Running, numbers: Numbers, share: float | None) -> Row:
    guest = numbers.guest
    return (
        running.ident,
        running.name or "-",
        "-" if share is None else f"{share * 100:.0f} %",
        f"{numbers.cpu_s:.1f} s",
        ("~" if numbers.is_estimate else "") + format_size(numbers.memory_kib * 1024),
        "-"
        if guest is None
        else " of ".join(
            format_size(kib * 1024) for kib in (guest.memory_kib - guest.available_kib, guest.memory_kib)
        ),
        "-" if numbers.read_bytes is None else format_size(numbers.read_bytes),
        "-" if numbers.written_bytes is None else format_size(numbers.written_bytes),
        str(numbers.processes),
    )


def _table(rows: list[Row]) -> str:
    table = [_HEADINGS, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(_HEADINGS))]
    lines = (
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )
    return "\n".join(lines) + "\n"
