"""Profiles: how long making and copying one takes, and a run with one beside a run without."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bench.prepare import CLOCHE
from bench.rounds import TIMEOUT_S, MeasureError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What the profile that is copied holds, in MiB of noise.
USED_MIB = 256


def _timed(*words: str) -> dict[str, float]:
    begin = time.monotonic()
    done = subprocess.run([str(CLOCHE), *words], capture_output=True, timeout=TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise MeasureError(done.stderr.decode("utf-8", "replace").strip()[-200:])
    return {"wall": time.monotonic() - begin}


@contextmanager
def used(mib: int = USED_MIB) -> Iterator[str]:
    """Provide the name of a profile with so much noise in it."""
    name = f"bench-{os.getpid()}"
    # As for somebody who has run with one before.
    _timed("template", "build", "--for-profiles")
    _timed("profile", "new", name)
    try:
        _timed("-p", name, "sh", "-c", f"head -c {mib}M /dev/urandom > ~/noise")
        yield name
    finally:
        _delete(name)


def _delete(name: str) -> None:
    subprocess.run(
        [str(CLOCHE), "profile", "delete", name], capture_output=True, timeout=TIMEOUT_S, check=False
    )


def measure_new(name: str) -> dict[str, float]:
    """Make another one."""
    other = f"{name}-new"
    try:
        return _timed("profile", "new", other)
    finally:
        _delete(other)


def measure_clone(name: str) -> dict[str, float]:
    """Copy it."""
    other = f"{name}-clone"
    try:
        return _timed("profile", "clone", name, other)
    finally:
        _delete(other)


def measure(*words: str) -> dict[str, float]:
    """Do anything else, from start to exit."""
    return _timed(*words)
