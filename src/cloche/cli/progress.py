"""How far a long job is (layer 6)."""

from __future__ import annotations

import os
import sys
import time


class Progress:
    """One line that is drawn again on a terminal; a line now and then elsewhere."""

    _PLAIN_INTERVAL_S = 15.0

    def __init__(self) -> None:
        """Nothing is shown yet."""
        self._terminal = os.isatty(2)
        self._stage = ""
        self._said = 0.0

    def __call__(self, stage: str, fraction: float) -> None:
        """Say that so much of the present stage, or of all, is done."""
        now = time.monotonic()
        if self._terminal:
            filled = round(fraction * 30)
            sys.stderr.write(f"\r\033[K{stage:<24} [{'#' * filled}{'.' * (30 - filled)}] {fraction:4.0%}")
            sys.stderr.flush()
        elif stage != self._stage or now - self._said >= self._PLAIN_INTERVAL_S:
            self._said = now
            sys.stderr.write(f"cloche: {stage} {fraction:.0%}\n")
            sys.stderr.flush()
        self._stage = stage

    def done(self) -> None:
        """Take the line away."""
        if self._terminal and self._stage:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
