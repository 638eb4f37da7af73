"""Compiled filters of system calls, as the audit counts them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.host.bpf import count_allowed

ALLOW, KILL = 0x7FFF_0000, 0x8000_0000


def program(*instructions: tuple[int, int, int, int]) -> bytes:
    """Return a filter."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def test_allowed_calls_are_counted() -> None:
    """A call counts when some arguments let it through; one that is not named counts if the rest is allowed."""
    load, equal, above, end = 0x20, 0x15, 0x25, 0x06
    some = program(
        (load, 0, 0, 4),
        (equal, 1, 0, 0xC000_003E),
        (end, 0, 0, KILL),
        (load, 0, 0, 0),
        (equal, 3, 0, 0),
        (equal, 2, 0, 1),
        (equal, 2, 0, 2),
        (end, 0, 0, KILL),
        (end, 0, 0, ALLOW),
        (load, 0, 0, 16),
        (above, 0, 1, 7),
        (end, 0, 0, ALLOW),
        (end, 0, 0, KILL),
    )
    assert count_allowed(some) == 3
    assert count_allowed(program((end, 0, 0, ALLOW))) == 1024
    assert count_allowed(program((end, 0, 0, KILL))) == 0
    refused = program((load, 0, 0, 0), (equal, 0, 1, 9), (end, 0, 0, KILL), (end, 0, 0, ALLOW))
    assert count_allowed(refused) == 1023


@pytest.mark.parametrize("code", [b"", b"1234567", program((0x20, 0, 0, 0)), program((0xFF, 0, 0, 0))])
def test_what_is_no_filter_has_no_number(code: bytes) -> None:
    """Nothing, pieces, a program without an end, and unknown instructions."""
    assert count_allowed(code) is None


INSTRUCTIONS = st.tuples(
    st.sampled_from([0x20, 0x54, 0x06, 0x05, 0x15, 0x25, 0x35, 0x45, 0xFF]),
    st.integers(0, 6),
    st.integers(0, 6),
    st.sampled_from([0, 1, 2, 4, 7, 16, 1023, 1024, ALLOW, KILL, 0xC000_003E, 2**32 - 1]),
)


@given(st.lists(INSTRUCTIONS, max_size=24))
def test_any_program_has_a_number_or_none(instructions: list[tuple[int, int, int, int]]) -> None:
    """Whatever lies where a filter should be: it is counted, or it is none."""
    count = count_allowed(program(*instructions))
    assert count is None or 0 <= count <= 1024


def test_a_program_may_name_every_call() -> None:
    """Then there is no other one that would stand for the rest."""
    named = [(0x15, 0, 0, number) for number in range(1024)]
    assert count_allowed(program((0x20, 0, 0, 0), *named, (0x06, 0, 0, KILL))) == 0
    assert count_allowed(program((0x20, 0, 0, 0), *named, (0x06, 0, 0, ALLOW))) == 1024
