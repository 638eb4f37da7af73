"""Where the time of a start goes (layer 5): marks on one clock, shown as a waterfall."""

from __future__ import annotations

import os
import time

from cloche.record import Record


class Mark(Record):
    """Something that was reached, ``at_s`` seconds after the process began."""

    name: str
    at_s: float


class Timings:
    """Collects marks. Cheap enough to be always on."""

    def __init__(self) -> None:
        self._origin = _process_start()
        self.marks: list[Mark] = []

    def mark(self, name: str) -> None:
        """Note that ``name`` has been reached now."""
        self.marks.append(Mark(name, time.clock_gettime(time.CLOCK_BOOTTIME) - self._origin))

    def waterfall(self, width: int = 40) -> list[str]:
        """Return one line a mark: when it was reached, how long after the one before, and a bar."""
        if not self.marks:
            return []
        total = max(self.marks[-1].at_s, 1e-6)
        lines = []
        before = 0.0
        for name, at in self.marks:
            begin = round(before / total * width)
            length = max(1, round(at / total * width) - begin)
            bar = " " * begin + "#" * length
            lines.append(f"{at * 1000:10.1f} ms  +{(at - before) * 1000:10.1f}  {bar:<{width + 1}} {name}")
            before = at
        return lines


def _process_start() -> float:
    # Field 22 of stat(5): clock ticks since boot at which the process began, in steps of 10 ms.
    # The interpreter's own start is in it.
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")
