"""``cloche kernel`` (layer 6): the guest kernels there are."""

from __future__ import annotations

import sys

from cloche.cli.listing import print_json
from cloche.cli.progress import Progress
from cloche.errors import UsageError
from cloche.kernel import store
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.parser import Parsed
    from cloche.kernel.store import KernelInfo


def build(parsed: Parsed) -> int:
    """Handle ``cloche kernel build``."""
    del parsed
    from cloche.kernel.build import build_kernel

    progress = Progress()
    try:
        kernel = build_kernel(progress)
    finally:
        progress.done()
    sys.stdout.write(f"{kernel.id}\n")
    return 0


def fetch(parsed: Parsed) -> int:
    """Handle ``cloche kernel fetch``."""
    del parsed
    from cloche.kernel.fetch import fetch_kernel

    progress = Progress()
    try:
        kernel = fetch_kernel(progress)
    finally:
        progress.done()
    sys.stdout.write(f"{kernel.id}\n")
    return 0


def list_(parsed: Parsed) -> int:
    """Handle ``cloche kernel list``."""
    kernels = store.list_kernels()
    default = store.default_id()
    if parsed.get("json"):
        rows = [{**kernel._asdict(), "default": kernel.id == default} for kernel in kernels]
        print_json(rows)
        return 0
    if not kernels:
        sys.stdout.write(
            "There is no guest kernel yet: `cloche kernel build` or `cloche kernel fetch` makes one.\n"
        )
        return 0
    width = max(len(kernel.id) for kernel in kernels)
    for kernel in kernels:
        mark = "*" if kernel.id == default else " "
        size = f"{kernel.size_bytes / 1048576:.0f} MiB"
        sys.stdout.write(
            f"{mark} {kernel.id:<{width}}  {kernel.kind:<8} {kernel.version:<24} {kernel.machines[0]:<8} {size}\n"
        )
    return 0


def use(parsed: Parsed) -> int:
    """Handle ``cloche kernel use NAME``."""
    _say(store.use_kernel(_one_name(parsed)))
    return 0


def remove(parsed: Parsed) -> int:
    """Handle ``cloche kernel remove NAME``."""
    store.remove_kernel(_one_name(parsed))
    return 0


def _one_name(parsed: Parsed) -> str:
    if len(parsed.operands) != 1:
        raise UsageError(
            f"`cloche {' '.join(parsed.path)}` needs one kernel's name",
            hint="`cloche kernel list` lists them.",
        )
    return parsed.operands[0]


def _say(kernel: KernelInfo | None) -> None:
    if kernel is not None:
        sys.stdout.write(f"{kernel.id}\n")
