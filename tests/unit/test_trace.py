"""The trace of a start: what a browser's viewer asks of the format, and that nothing of the marks is lost."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.domain.timings import Mark
from cloche.domain.trace import build_events, open_trace, write_trace
from cloche.errors import HostError
from support.traces import check_events, names_of_rows

if TYPE_CHECKING:
    from pathlib import Path

FROM_TEMPLATE = (
    *("python", "plan", "sockets and warden", "processes sent off", "warden ready", "vmm started"),
    *("memory filled", "fs-system started", "filters counted", "agent answers", "guest set up"),
    *("program started", "program ended", "ended"),
)


def marks_of(names: tuple[str, ...]) -> list[Mark]:
    """Return a mark each 10 ms."""
    return [Mark(name, 0.01 * (number + 1)) for number, name in enumerate(names)]


def events_of(names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the events of such marks, which are held to be a trace."""
    events: list[dict[str, Any]] = build_events(marks_of(names), 7)
    check_events(events)
    return events


def test_a_start_is_rows_of_spans() -> None:
    """Cloche's own steps follow each other, each process has a row and lives to the end, so does the guest."""
    events = events_of(FROM_TEMPLATE)
    assert names_of_rows(events) == ["cloche", "vmm", "fs-system", "guest"]
    spans = {(event["tid"], event["name"]): event for event in events if event["ph"] == "X"}
    assert (spans[1, "plan"]["ts"], spans[1, "plan"]["dur"]) == (10_000, 10_000)
    assert (spans[2, "start"]["ts"], spans[2, "start"]["dur"]) == (40_000, 20_000)
    assert spans[3, "runs"]["ts"] + spans[3, "runs"]["dur"] == 140_000
    assert [name for row, name in spans if row == 4] == [
        *("until the agent answers", "set-up", "program's start", "program"),
    ]
    assert spans[4, "program"]["ts"] + spans[4, "program"]["dur"] == spans[1, "end"]["ts"] == 130_000
    assert [event["name"] for event in events if event["ph"] == "i"] == ["warden ready", "filters counted"]


def test_a_template_that_was_given_up_ends_its_processes() -> None:
    """The machine that comes after it has the same rows, and no span there overlaps another."""
    again = ("sockets and warden", "processes sent off", "warden ready", "vmm started")
    events = events_of((*FROM_TEMPLATE[:8], "template given up", *again, "agent answers", "ended"))
    runs = [event for event in events if event["name"] == "runs" and event["tid"] == 2]
    assert len(runs) == 2
    for before, after in pairwise(runs):
        assert before["ts"] + before["dur"] <= after["ts"]


@given(
    st.lists(st.sampled_from([*FROM_TEMPLATE, "template given up", "odd\n"]), max_size=20),
    st.lists(st.floats(-0.01, 99), min_size=20, max_size=20).map(sorted),
)
def test_every_mark_is_in_it(names: list[str], times: list[float]) -> None:
    """Whatever order they come in, it is a trace, and each is the end of a span or a moment."""
    marks = [Mark(name, at) for name, at in zip(names, times, strict=False)]
    events: list[dict[str, Any]] = build_events(marks, 1)
    check_events(events)
    ends = {round(event["ts"] + event.get("dur", 0)) for event in events if event["ph"] in "Xi"}
    assert all(any(abs(end - max(mark.at_s, 0) * 1e6) <= 1 for end in ends) for mark in marks)


@pytest.mark.parametrize("key", ["ph", "ts", "pid", "dur"])
def test_the_check_itself_finds_what_is_missing(key: str) -> None:
    """An event without one of its fields is no event."""
    events = events_of(FROM_TEMPLATE)
    del next(event for event in events if event["ph"] == "X")[key]
    with pytest.raises((AssertionError, KeyError)):
        check_events(events)


def test_a_file(tmp_path: Path) -> None:
    """It is one JSON object; a place where none can be is an error before, a full disk one afterwards."""
    path = tmp_path / "trace.json"
    write_trace(open_trace(str(path)), marks_of(FROM_TEMPLATE))
    check_events(json.loads(path.read_text())["traceEvents"])
    with pytest.raises(HostError, match=r"cannot be written to .*: No such file"):
        open_trace(str(tmp_path / "nowhere" / "file"))
    with pytest.raises(HostError, match="cannot be written to /dev/full: No space left"):
        write_trace(open_trace("/dev/full"), marks_of(FROM_TEMPLATE))
