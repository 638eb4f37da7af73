"""What a program inherits from who has called cloche (layer 3a)."""

from __future__ import annotations

import os

from cloche.lean import signal


def working_directory() -> str:
    """Return the working directory; "/" when it is gone."""
    try:
        return os.getcwd()
    except OSError:
        return "/"


def ignored_signals() -> int:
    """Return the signals that are ignored, bit N - 1 for signal N."""
    mask = 0
    for signo in range(1, 65):
        # Two are Python's own doing: nothing says any more what they were before.
        if signo not in (signal.SIGPIPE, signal.SIGXFSZ) and signal.getsignal(signo) is signal.SIG_IGN:
            mask |= 1 << (signo - 1)
    return mask
