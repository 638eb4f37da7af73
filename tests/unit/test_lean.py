"""The cheap enumerations behave like the standard library's where cloche uses them."""

from __future__ import annotations

import enum
from typing import Any

import pytest

from cloche import lean

PAIRS = ((lean.IntEnum, enum.IntEnum), (lean.IntFlag, enum.IntFlag), (lean.Enum, enum.Enum))


def make(base: Any) -> Any:
    """Return the same class on either base."""

    class Colour(base):  # type: ignore[misc]
        """Two of them."""

        RED = 1
        GREEN = 2

        def shout(self) -> str:
            return str(self.name)

    return Colour


@pytest.mark.parametrize("ours, theirs", PAIRS)
def test_members_have_name_and_value(ours: Any, theirs: Any) -> None:
    """Members are listed in order, with names, values and methods, and cannot be replaced."""
    for base in (ours, theirs):
        colour = make(base)
        assert [(one.name, one.value) for one in colour] == [("RED", 1), ("GREEN", 2)]
        assert colour.RED is colour.RED
        assert colour.RED != colour.GREEN
        assert isinstance(colour.RED, colour)
        assert len({colour.RED, colour.GREEN}) == 2
        with pytest.raises(AttributeError):
            colour.RED = 3


@pytest.mark.parametrize("ours, theirs", PAIRS[:2])
def test_integers_are_integers(ours: Any, theirs: Any) -> None:
    """Members of the integer kinds calculate, and are found by their value."""
    for base in (ours, theirs):
        colour = make(base)
        assert colour.RED | colour.GREEN == 3
        assert colour.RED + 1 == 2
        assert colour(2) is colour.GREEN
    for base in PAIRS[0]:
        with pytest.raises(ValueError, match="7 is not a valid"):
            make(base)(7)
