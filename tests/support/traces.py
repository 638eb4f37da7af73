"""What a viewer of Chrome's Trace Event Format asks of a list of events."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

_NAMING = ("process_name", "thread_name", "thread_sort_index")


def check_events(events: list[dict[str, Any]]) -> None:
    """Hold that it is a trace: known kinds, numbers where numbers belong, every row named, its spans apart."""
    named = {event["tid"] for event in events if event["name"] == "thread_name"}
    spans: dict[int, list[tuple[float, float]]] = {}
    for event in events:
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        if event["ph"] == "M":
            assert event["name"] in _NAMING
            assert set(event["args"]) <= {"name", "sort_index"}
            continue
        assert event["ph"] in ("X", "i"), event
        assert event["tid"] in named
        assert event["ts"] >= 0
        if event["ph"] == "i":
            assert event["s"] in ("g", "p", "t")
            continue
        assert event["dur"] >= 0
        spans.setdefault(event["tid"], []).append((event["ts"], event["ts"] + event["dur"]))
    for row in spans.values():
        for (_, end), (after, _) in pairwise(sorted(row)):
            assert after >= end - 0.2, row


def names_of_rows(events: list[dict[str, Any]]) -> list[str]:
    """Return what the rows are called, from above."""
    return [event["args"]["name"] for event in events if event["name"] == "thread_name"]
