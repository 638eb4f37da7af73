"""The stage `python`: ``.venv`` with the development tools, and cloche itself in it.

Running cloche needs nothing of it: that is done by the distribution's Python alone.
"""

from __future__ import annotations

import os

from setuplib import stamp
from setuplib.ui import ROOT, output_of, run

#: Never the ``python3`` on PATH: a version manager's costs 0.2 s at each start, and its modules are not Debian's.
PYTHON = "/usr/bin/python3"
VENV = os.path.join(ROOT, ".venv")
REQUIREMENTS = os.path.join(ROOT, "tools", "requirements.txt")


def ensure() -> None:
    """Make the environment, or bring it up to date.

    Raises:
        SetupError: pip failed, for example because it reaches no package index.
    """
    interpreter = os.path.realpath(PYTHON)
    inputs = stamp.hash_files([REQUIREMENTS, os.path.join(ROOT, "pyproject.toml")])
    key = f"{VENV}\n{stamp.signature(interpreter)}\n{inputs}"
    mark = os.path.join(VENV, "setup-stamp")
    if stamp.is_fresh(mark, key):
        return
    python = os.path.join(VENV, "bin", "python3")
    if os.path.realpath(python) != interpreter or not output_of([python, "-m", "pip", "--version"]):
        run("python", "making .venv", [PYTHON, "-m", "venv", "--clear", VENV])
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
    run(
        "python",
        "installing the development tools",
        [*pip, "--require-hashes", "--only-binary=:all:", "-r", REQUIREMENTS],
    )
    run(
        "python",
        "putting cloche into .venv",
        [*pip, "--no-deps", "--no-build-isolation", "--no-index", "--editable", ROOT],
    )
    stamp.write_stamp(mark, key)
