"""Fixtures of the attacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.mutants import hostile_programs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def hostile() -> Iterator[Path]:
    """Provide a directory with hostile builds of the device programs, where every user can run them."""
    with hostile_programs() as programs:
        yield programs
