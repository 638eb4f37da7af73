"""What the project wants to reach, computed from the samples (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from bench.devices import DEPTHS, PATTERNS
from bench.samples import median, paired_ratio

if TYPE_CHECKING:
    from bench.samples import Samples

CLOCHE, RAW, RAW_BWRAP, BWRAP = (
    "cloche run --cold -- true",
    "raw QEMU",
    "raw QEMU under bubblewrap",
    "bubblewrap alone",
)
TEMPLATE = "cloche run -- true (from the template)"
#: What grows beside a start, and how far. A machine has room for three disks beside its shares.
COUNTS = {"shares": (0, 1, 4, 16), "disks": (0, 1, 2, 3), "running domains": (0, 5, 10, 20)}
FORK, SNAPSHOT, RAW_BESIDE = "cloche fork", "cloche snapshot save", "raw QEMU, start to exit of `true`"
TEMPORARY, WITH_PROFILE = "cloche -t true", "cloche -p NAME true"
PROFILE_NEW, PROFILE_CLONE = "cloche profile new", "cloche profile clone"
#: A command that only looks.
PROFILE_LIST = "cloche profile list"
#: Where an archive is unpacked.
TREE_PROFILE, TREE_SHARE = "a profile", "a writable share of the host"
TREE_RAW = "raw QEMU, virtio-blk with ext4"
POOL = "cloche run -- true (from the pool)"
VIRTME, VIRTME_SAME = "virtme-ng, Debian's kernel", "virtme-ng, cloche's kernel"
PC, MICROVM = "raw QEMU pc, cloud kernel, busybox", "raw QEMU microvm, cloche's kernel, busybox"
VERSION, PYTHON = "cloche --version", "python3 -I -S -c pass"
WATERFALL = "cloche run --timings"
#: The arrangements of devices, by what `--devices` calls them, and a guest that stands still.
DEVICES = {
    "process": "a process for each device",
    "bundled": "one process for all devices",
    "vmm": "devices in the VMM",
}
DISKS = {"process": "disk in a process", "bundled": "disk in the bundle", "vmm": "disk in the VMM"}
IDLE = "a process for each device, idle"
GUEST_CLOCHE, GUEST_VIRTME = "cloche's guest", "virtme-ng's guest"
#: Memory is measured for so many domains at once.
CROWD = 10
#: Memory of whole domains, all processes and the guest's own, is measured for so many with guests of this size.
CROWDS, SMALL_MIB = (1, 10, 40), 128
EXEC_TYPED, EXEC_API = "cloche exec DOMAIN -- true", "cloche.Domain.run, on an open domain"
EXEC_AGENT = "the agent's own time"
#: "Flat": what the most may cost, to a start with none.
FLAT = 1.25


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
        Goal(
            "start from a template to raw QEMU's cold one",
            paired_ratio(samples, TEMPLATE, RAW, "wall"),
            0.6,
            "times",
        ),
        Goal(
            "fork of Python with 50 MiB to raw QEMU's cold start",
            paired_ratio(samples, FORK, RAW_BESIDE, "wall"),
            0.6,
            "times",
        ),
        Goal("saved state to the guest's memory", median(samples, SNAPSHOT, "saved"), 1.15, "times"),
        Goal(
            "run from the pool to raw QEMU's cold start",
            paired_ratio(samples, POOL, RAW, "wall"),
            0.15,
            "times",
        ),
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
    for count in CROWDS:
        ours, theirs = crowd_names(count)
        ratio = paired_ratio(samples, ours, theirs, "total")
        goals.append(
            Goal(f"all memory to raw QEMU's, {count} idle, guests of {SMALL_MIB} MiB", ratio, 1.15, "times")
        )
    return [
        *goals,
        *judge_profiles(samples),
        *judge_trees(samples),
        *judge_joins(samples),
        *judge_scaling(samples),
        *judge_devices(samples),
    ]


def crowd_names(count: int) -> tuple[str, str]:
    """Return the names of so many domains of cloche's, and of as many raw QEMUs."""
    return f"cloche, {count} idle, {SMALL_MIB} MiB", f"raw QEMU, {count} idle, {SMALL_MIB} MiB"


def judge_joins(samples: Samples) -> list[Goal]:
    """Return the goals for programs that join a domain: milliseconds over the agent's own."""
    agent = median(samples, EXEC_AGENT, "wall")
    goals = []
    for name, text, limit in ((EXEC_TYPED, "exec as typed", 45.0), (EXEC_API, "exec by the API", 10.0)):
        wall = median(samples, name, "wall")
        more_ms = None if wall is None or agent is None else (wall - agent) * 1000
        goals.append(Goal(f"{text}, over the agent's own time", more_ms, limit, "ms"))
    return goals


def judge_scaling(samples: Samples) -> list[Goal]:
    """Return the goals for a start beside many of something, to one beside none."""
    return [
        Goal(
            f"start with {max(counts)} {what} to one with none",
            paired_ratio(samples, f"{max(counts)} {what}", f"0 {what}", "wall"),
            FLAT,
            "times",
        )
        for what, counts in COUNTS.items()
    ]


def judge_profiles(samples: Samples) -> list[Goal]:
    """Return the goals for what keeps changes."""
    pairs = (
        ("start with a profile, more than without", TEMPORARY, WITH_PROFILE, 40.0),
        ("making a profile, more than a command that only looks", PROFILE_LIST, PROFILE_NEW, 50.0),
    )
    goals = []
    for text, less, more, limit in pairs:
        walls = [median(samples, name, "wall") for name in (less, more)]
        more_ms = None if None in walls else (walls[1] - walls[0]) * 1000  # type: ignore[operator]
        goals.append(Goal(text, more_ms, limit, "ms"))
    return goals


def judge_trees(samples: Samples) -> list[Goal]:
    """Return the goals for files on what can be written to."""
    return [
        Goal(
            f"{step} in a profile to raw QEMU with virtio-blk",
            paired_ratio(samples, TREE_PROFILE, TREE_RAW, step),
            1.1,
            "times",
        )
        for step in ("untar", "git status")
    ]


def judge_devices(samples: Samples) -> list[Goal]:
    """Return the goals for the price of a process for each device."""
    apart, inside = DEVICES["process"], DEVICES["vmm"]
    walls = [median(samples, name, "wall") for name in (apart, inside)]
    more_ms = None if None in walls else (walls[0] - walls[1]) * 1000  # type: ignore[operator]
    goals = [Goal("start with a process for each device, more than in the VMM", more_ms, 60.0, "ms")]
    for step in ("tree walk", "small files"):
        ratio = paired_ratio(samples, apart, inside, step)
        goals.append(Goal(f"{step}, device apart to in the VMM", ratio, 1.1, "times"))
    rates = [("random numbers", apart, inside, "random")]
    rates += [
        (f"disk, {pattern} at depth {depth}", DISKS["process"], DISKS["vmm"], f"{pattern}-{depth}")
        for pattern, _ in PATTERNS
        for depth in DEPTHS
    ]
    for text, one, other, metric in rates:
        ratio = paired_ratio(samples, one, other, metric)
        goals.append(Goal(f"{text}, device apart to in the VMM", ratio, 0.9, "times", least=True))
    woken = median(samples, IDLE, "others")
    goals.append(Goal("context switches of an idle domain besides QEMU", woken, 0.0, "times"))
    return goals
