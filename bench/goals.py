"""What the project wants to reach, computed from the samples (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from bench.samples import median, paired_ratio

if TYPE_CHECKING:
    from bench.samples import Samples

CLOCHE, RAW, RAW_BWRAP, BWRAP = (
    "cloche run --cold -- true",
    "raw QEMU",
    "raw QEMU under bubblewrap",
    "bubblewrap alone",
)
VIRTME, VIRTME_SAME = "virtme-ng, Debian's kernel", "virtme-ng, cloche's kernel"
PC, MICROVM = "raw QEMU pc, cloud kernel, busybox", "raw QEMU microvm, cloche's kernel, busybox"
VERSION, PYTHON = "cloche --version", "python3 -I -S -c pass"
WATERFALL = "cloche run --timings"
GUEST_CLOCHE, GUEST_VIRTME = "cloche's guest", "virtme-ng's guest"
#: Memory is measured for so many domains at once.
CROWD = 10


class Goal(NamedTuple):
    """One goal: what it is about, the figure reached, and the limit it must not pass (a floor if ``least``)."""

    text: str
    value: float | None
    limit: float
    unit: str
    least: bool = False

    @property
    def verdict(self) -> str:
        """``reached``, ``missed``, or ``not measured``."""
        if self.value is None:
            return "not measured"
        good = self.value >= self.limit if self.least else self.value <= self.limit
        return "reached" if good else "missed"


def judge(samples: Samples) -> list[Goal]:
    """Return every goal with what was reached."""
    goals = [
        Goal("cold start to raw QEMU", paired_ratio(samples, CLOCHE, RAW, "wall"), 1.25, "times"),
        Goal("cold start to virtme-ng", paired_ratio(samples, CLOCHE, VIRTME, "wall"), 0.1, "times"),
        Goal("--version to a bare Python", paired_ratio(samples, VERSION, PYTHON, "wall"), 4.0, "times"),
        Goal("the host's own share of a start", median(samples, WATERFALL, "host's share"), 150.0, "ms"),
        Goal("microvm to pc, both raw", paired_ratio(samples, MICROVM, PC, "wall"), 1 / 6, "times"),
        Goal(
            "throughput of cat to virtme-ng's",
            paired_ratio(samples, GUEST_CLOCHE, GUEST_VIRTME, "cat"),
            1.0,
            "times",
            least=True,
        ),
    ]
    for metric, text in (
        ("echo", "echo of one byte"),
        ("tree walk", "tree walk"),
        ("small files", "many small files"),
        ("large file", "one large file"),
    ):
        ratio = paired_ratio(samples, GUEST_CLOCHE, GUEST_VIRTME, metric)
        goals.append(Goal(f"{text}, time to virtme-ng's", ratio, 1.0, "times"))
    for count in (1, CROWD):
        name = f"{count} at once" if count > 1 else "one domain"
        goals.append(
            Goal(
                f"private memory besides QEMU's, {name}",
                median(samples, f"cloche, {name}", "others"),
                40.0,
                "MiB",
            )
        )
        ratio = paired_ratio(samples, f"cloche, {name}", f"raw QEMU, {name}", "qemu")
        goals.append(Goal(f"QEMU's memory to raw QEMU's, {name}", ratio, 1.1, "times"))
    return goals
