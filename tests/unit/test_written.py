"""Records as JSON: what is written is read again, and what is no record is refused at every place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.host.written import from_plain, to_plain
from cloche.model.request import Disk, RunRequest, Share
from cloche.record import Record


class Inner(Record):
    """A record in another one."""

    word: bytes
    ends: tuple[int, int] | None


class Outer(Record):
    """Everything that a record may hold."""

    text: str
    yes: bool
    number: int
    real: float
    inner: tuple[Inner, ...]


WORDS = st.binary(max_size=8)
INNER = st.builds(Inner, WORDS, st.none() | st.tuples(st.integers(), st.integers()))
#: Names of files may hold any byte; text of them holds what is no text as surrogates.
TEXT = st.binary(max_size=8).map(lambda name: name.decode("utf-8", "surrogateescape"))
OUTER = st.builds(
    Outer,
    TEXT,
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.lists(INNER, max_size=3).map(tuple),
)


@given(OUTER)
def test_what_is_written_is_read(record: Outer) -> None:
    """A record survives, with every byte."""
    assert from_plain(Outer, json.loads(json.dumps(to_plain(record)))) == record


def test_a_request_is_read() -> None:
    """The records that snapshots hold have annotations that can be looked up."""
    asked = RunRequest(
        (b"a\xff",),
        shares=(Share("/a", "/b", True),),
        disks=(Disk("t", "/i", most_bytes=None),),
        env=((b"A", b"b"),),
    )
    assert from_plain(RunRequest, json.loads(json.dumps(to_plain(asked)))) == asked


@pytest.mark.parametrize(
    "changes",
    [
        {"text": 1},
        {"text": None},
        {"yes": 1},
        {"yes": "true"},
        {"number": True},
        {"number": 1.5},
        {"real": "1"},
        {"inner": {}},
        {"inner": [[]]},
        {"inner": [{"word": "a"}]},
        {"inner": [{"word": "\u1234", "ends": None}]},
        {"inner": [{"word": "a", "ends": [1]}]},
        {"inner": [{"word": "a", "ends": [1, 2, 3]}]},
        {"more": 1},
    ],
)
def test_what_is_no_record_is_refused(changes: dict[str, Any]) -> None:
    """A value of another type, a missing field and one too many are errors, and never taken for something else."""
    plain = to_plain(Outer("a", True, 1, 1.0, (Inner(b"a", (1, 2)),)))
    assert from_plain(Outer, plain) is not None
    with pytest.raises(ValueError, match=r"."):
        from_plain(Outer, plain | changes)
    del plain["text"]
    with pytest.raises(ValueError, match="no Outer"):
        from_plain(Outer, plain)
