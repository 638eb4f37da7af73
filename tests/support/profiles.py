"""Profiles that tests make, and what they are when nobody uses them."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.runs import Runner


@contextmanager
def profile(runner: Runner, name: str, *options: str) -> Iterator[Path]:
    """Provide a profile; yields its directory."""
    made = runner("profile", "new", *options, name)
    assert made.returncode == 0, made.stderr
    try:
        yield runner.user.home / ".local/share/cloche/profiles" / name
    finally:
        gone = runner("profile", "delete", name)
        assert gone.returncode == 0, gone.stderr


def run(runner: Runner, script: str, *options: str, **more: object) -> bytes:
    """Run a script that succeeds and says nothing on stderr; returns what it has written."""
    done = runner.sh(script, *options, **more)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr
    return done.stdout


def is_clean(image: Path) -> bool:
    """Tell whether the disk of a profile that nobody uses was closed cleanly; a test may look into it."""
    looked = subprocess.run(["e2fsck", "-fn", str(image)], capture_output=True, check=False)
    head = subprocess.run(["dumpe2fs", "-h", str(image)], capture_output=True, check=False).stdout
    return looked.returncode == 0 and b"needs_recovery" not in head
