"""What a guest says of a profile's disk: read strictly, however it lies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.model.profile import Change
from cloche.plan import profile_scripts
from cloche.plan.profile_scripts import DIFF, GROW, RESET, parse_changes


def test_what_it_says_is_read() -> None:
    """Kind, size and path of each difference, whatever bytes a path holds."""
    said = b"added 5\0/a\nb\xff\0deleted 0\0/etc/x\0"
    assert parse_changes(said) == (Change("added", 5, b"/a\nb\xff"), Change("deleted", 0, b"/etc/x"))
    assert parse_changes(b"") == ()


@pytest.mark.parametrize(
    "said",
    [
        b"added 5",
        b"added 5\0/a",
        b"added 5\0",
        b"moved 5\0/a\0",
        b"added -1\0/a\0",
        b"added 5x\0/a\0",
        b"added " + b"9" * 20 + b"\0/a\0",
        b"added 5\0a\0",
        b"added\0/a\0",
    ],
)
def test_what_makes_no_sense_is_refused(said: bytes) -> None:
    """A cut, an unknown kind, a number that is none, a path that is not absolute."""
    with pytest.raises(ValueError):  # noqa: PT011 - the caller tells it in words of its own
        parse_changes(said)


def test_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest does not fill the host's memory with differences."""
    monkeypatch.setattr(profile_scripts, "_MOST", 10)
    with pytest.raises(ValueError, match="too much"):
        parse_changes(b"added 5\0/a\0")


@given(st.binary(max_size=200))
def test_noise_is_read_or_refused(said: bytes) -> None:
    """Nothing but ValueError comes of it."""
    try:
        parse_changes(said)
    except ValueError:
        pass


@pytest.mark.parametrize("script", [DIFF, RESET, GROW])
def test_the_scripts_are_python(script: str) -> None:
    """They compile."""
    compile(script, "script", "exec")
