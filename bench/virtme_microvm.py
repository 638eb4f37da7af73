#!/usr/bin/python3 -I
"""QEMU as virtme-ng sees it: starts a microvm in place of the machine virtme-ng asked for (see ``machines``)."""

import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.machines import to_microvm

if __name__ == "__main__":
    qemu = shutil.which("qemu-system-x86_64") or "qemu-system-x86_64"
    if sys.argv[1:] == ["--version"]:
        os.execv(qemu, [qemu, "--version"])  # noqa: S606 - this program becomes QEMU
    os.execv(qemu, [qemu, *to_microvm(sys.argv[1:])])  # noqa: S606 - the same
