"""Where the time of a start goes, as a trace that a browser's viewer opens (layer 5).

The format is Chrome's Trace Event Format in its object form: https://docs.google.com/document/d/
1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU ("Trace Event Format"); Perfetto and chrome://tracing read it. Times are in
microseconds since the command began. Three kinds of rows: what cloche does, each process of the domain, and the guest.
"""

from __future__ import annotations

import json
import os

from cloche.errors import HostError
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

    from cloche.domain.timings import Mark

    Event = dict[str, object]

_CLOCHE, _GUEST = "cloche", "guest"
_SENT, _GIVEN_UP = "processes sent off", "template given up"
_STARTED = " started"
_HINT = "Name a file in a directory of yours: --timings=FILE."


class _Span(Record):
    """What ends with a mark: its row, what it is called there, and the mark with which it begins (empty: the start)."""

    row: str
    name: str
    since: str


_SPANS = {
    "python": _Span(_CLOCHE, "interpreter, imports, command line", ""),
    "plan": _Span(_CLOCHE, "plan", "python"),
    "sockets and warden": _Span(_CLOCHE, "sockets and warden", "plan"),
    _SENT: _Span(_CLOCHE, "processes sent off", "sockets and warden"),
    "memory filled": _Span(_CLOCHE, "memory filled", "vmm started"),
    "agent answers": _Span(_GUEST, "until the agent answers", "vmm started"),
    "guest set up": _Span(_GUEST, "set-up", "agent answers"),
    "program started": _Span(_GUEST, "program's start", "guest set up"),
    "program ended": _Span(_GUEST, "program", "program started"),
    "ended": _Span(_CLOCHE, "end", "program ended"),
}


def open_trace(path: str) -> TextIO:
    """Open the file of a trace, so that one that cannot be written is found out before anything is started.

    Raises:
        HostError: It cannot.
    """
    try:
        return open(path, "w", encoding="utf-8")
    except OSError as error:
        raise _unwritable(path, error) from None


def write_trace(file: TextIO, marks: Sequence[Mark]) -> None:
    """Write the trace of these marks, and close the file.

    Raises:
        HostError: There is no room for it.
    """
    try:
        with file:
            json.dump({"displayTimeUnit": "ms", "traceEvents": build_events(marks, os.getpid())}, file)
    except OSError as error:
        raise _unwritable(file.name, error) from None


def _unwritable(path: str, error: OSError) -> HostError:
    return HostError(f"the trace cannot be written to {path}: {error.strerror}", hint=_HINT)


def build_events(marks: Sequence[Mark], pid: int) -> list[Event]:
    """Return the events of a trace: every mark is the end of a span, or a moment."""
    rows: dict[str, int] = {}
    events: list[Event] = []
    reached = {"": 0.0}
    living: dict[str, float] = {}
    ends: dict[str, float] = {}

    def add(row: str, kind: str, name: str, at_s: float, **more: object) -> None:
        tid = rows.setdefault(row, len(rows) + 1)
        events.append(
            {"ph": kind, "name": name, "cat": "start", "pid": pid, "tid": tid, "ts": _us(at_s), **more}
        )

    def span(row: str, name: str, begin_s: float, end_s: float) -> None:
        # A viewer shows spans of one row only where they do not overlap.
        begin_s = min(max(begin_s, ends.get(row, 0.0)), end_s)
        ends[row] = end_s
        add(row, "X", name, begin_s, dur=round(_us(end_s) - _us(begin_s), 1))

    def die(end_s: float) -> None:
        for process, begin_s in living.items():
            span(process, "runs", begin_s, end_s)
        living.clear()

    for name, at_s in marks:
        what = _SPANS.get(name)
        process = name.removesuffix(_STARTED)
        if what is not None and what.since in reached:
            span(what.row, what.name, reached[what.since], at_s)
        elif what is None and process != name and _SENT in reached:
            span(process, "start", reached[_SENT], at_s)
            living[process] = at_s
        else:
            add(_CLOCHE, "i", name, at_s, s="t")
        if name == _GIVEN_UP:
            die(at_s)
        reached[name] = at_s
    if marks:
        die(marks[-1].at_s)
    return [*_names(rows, pid), *sorted(events, key=lambda event: float(str(event["ts"])))]


def _us(at_s: float) -> float:
    # The kernel says when the process began in steps of 10 ms: a mark may lie before.
    return round(max(at_s, 0.0) * 1e6, 1)


def _names(rows: dict[str, int], pid: int) -> list[Event]:
    """Return the events that give process and rows their names, in their order."""
    named: list[Event] = [{"ph": "M", "name": "process_name", "pid": pid, "args": {"name": "cloche run"}}]
    for row, tid in rows.items():
        named.append({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": row}})
        named.append(
            {"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": tid}}
        )
    return named
