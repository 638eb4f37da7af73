"""Builds of the device programs that do what a jail is to prevent (feature ``hostile``)."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from setuplib import cargo, rust

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAMS = ("cloche-fs", "cloche-rng", "cloche-disk", "cloche-net", "cloche-vsock", "cloche-bundle")


@contextmanager
def hostile_programs() -> Iterator[Path]:
    """Provide a directory with hostile builds of the device programs, where every user can run them."""
    project = Path(__file__).resolve().parents[2]
    found = cargo.find()
    assert found is not None, "there is no cargo; `make setup` installs one"
    target = project / "target" / "mutants"
    packages = [word for program in PROGRAMS for word in ("--package", program)]
    features = ",".join(f"{program}/hostile" for program in PROGRAMS)
    subprocess.run(
        [
            *(found.path, "build", "--locked", "--quiet", *packages, "--target", rust.TARGET),
            *("--features", features, "--target-dir", str(target)),
        ],
        cwd=project,
        env={
            **os.environ,
            **cargo.environment(found),
            "RUSTFLAGS": rust.flags(),
            # With assertions the standard library asks about each descriptor before it closes it, by a call that the
            # filters do not allow.
            "CARGO_PROFILE_DEV_DEBUG_ASSERTIONS": "false",
        },
        check=True,
    )
    copies = Path("/var/tmp", f"cloche-hostile.{os.getpid()}")
    copies.mkdir(mode=0o755)
    for program in PROGRAMS:
        shutil.copy(target / rust.TARGET / "debug" / program, copies / program)
    yield copies
    shutil.rmtree(copies)
