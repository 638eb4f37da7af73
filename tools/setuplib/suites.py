"""The stage `suites`: others' test suites that no distribution packages, in ``build/tools``."""

from __future__ import annotations

import os

from setuplib import cargo, stamp
from setuplib.ui import ROOT, SetupError, run

TOOLS = os.path.join(ROOT, "build", "tools")
#: What POSIX says of files, as tests: the kept rewrite of FreeBSD's suite (BSD-2-Clause).
PJDFSTEST = "pjdfstest@0.2.2"


def ensure() -> None:
    """Compile pjdfstest, at the version and with the crates that its own lock file names.

    Raises:
        SetupError: There is no cargo, or it failed.
    """
    key = f"{ROOT}\n{PJDFSTEST}\n{cargo.signature()}"
    mark = os.path.join(stamp.STAMPS, "suites")
    if stamp.is_fresh(mark, key) and os.path.exists(os.path.join(TOOLS, "bin", "pjdfstest")):
        return
    found = cargo.find()
    if found is None:
        raise SetupError("there is no new enough cargo; 'tools/setup system rust' installs one")
    run(
        "suites",
        f"compiling {PJDFSTEST}",
        [found.path, "install", "--locked", "--force", "--root", TOOLS, PJDFSTEST],
        env=cargo.environment(found),
    )
    stamp.write_stamp(mark, key)
