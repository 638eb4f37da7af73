"""Fixtures of the attacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.liars import DEVICES, started
from support.mutants import hostile_programs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.vhost import DeviceProcess


@pytest.fixture(scope="session")
def hostile() -> Iterator[Path]:
    """Provide a directory with hostile builds of the device programs, where every user can run them."""
    with hostile_programs() as programs:
        yield programs


@pytest.fixture(params=DEVICES)
def victim(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[DeviceProcess, int]]:
    """Provide each kind of device process, and how many queues it has."""
    with started(request.param, tmp_path) as found:
        yield found
