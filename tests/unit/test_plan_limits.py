"""What a host has too little of to start a machine."""

from __future__ import annotations

import pytest

from cloche.drivers.registry import find_driver
from cloche.errors import HostError
from support.plans import KERNEL, facts, request


def test_too_few_open_files_are_refused() -> None:
    """A limit below what a file server starts with is named, with the number that is needed."""
    driver = find_driver("qemu")
    assert driver.plan(request(), facts()._replace(nofile_hard=128), KERNEL)
    with pytest.raises(HostError, match="at most 127 open files are allowed here, and cloche needs 128"):
        driver.plan(request(), facts()._replace(nofile_hard=127), KERNEL)
