"""The stage `kernel`: a guest kernel in the XDG cache.

``cloche kernel`` does the work and knows what is cached; here is only remembered that it was asked, so that asking
again costs nothing.
"""

from __future__ import annotations

import os

from setuplib import stamp
from setuplib.ui import ROOT, cache_home, run, say

CLOCHE = os.path.join(ROOT, "bin", "cloche")
BUILD_INPUTS = ("guest", "src/cloche/kernel")


def ensure(*, built: bool) -> None:
    """Make sure there is a kernel.

    Args:
        built: It has to be one built for cloche; else any stored one does, and without one the distribution's own is
            fetched, which takes seconds and not minutes.

    Raises:
        SetupError: It could not be built or fetched.
    """
    kernels = os.path.join(cache_home(), "kernels")
    if built:
        inputs = stamp.hash_files(os.path.join(ROOT, name) for name in BUILD_INPUTS)
        mark = os.path.join(stamp.STAMPS, "kernel")
        if not stamp.is_fresh(mark, f"{inputs}\n{stamp.signature(kernels)}"):
            run(
                "kernel",
                "building the guest kernel (some minutes the first time)",
                [CLOCHE, "kernel", "build"],
            )
            stamp.write_stamp(mark, f"{inputs}\n{stamp.signature(kernels)}")
    elif not _any_kernel(kernels):
        say(
            "kernel",
            "none is built yet; the distribution's own will do ('make test' builds one that starts faster)",
        )
        run("kernel", "fetching the distribution's kernel", [CLOCHE, "kernel", "fetch"])


def _any_kernel(kernels: str) -> bool:
    """Whether the store holds a kernel."""
    try:
        names = os.listdir(kernels)
    except OSError:
        return False
    return any(os.path.exists(os.path.join(kernels, name, "info")) for name in names)
