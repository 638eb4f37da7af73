"""``make bench``: measures, prints the tables, and writes them to bench/results."""

from __future__ import annotations

import argparse
import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, NamedTuple

from bench import (
    devices,
    forks,
    goals,
    guestwork,
    hostinfo,
    joins,
    machines,
    memory,
    plot,
    profiles,
    report,
    rounds,
    scaling,
    timings,
    trees,
    workload,
)
from bench.prepare import CLOCHE, ROOT, computer_with, prepare
from bench.report import Column, Group
from bench.rounds import Candidate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bench.prepare import Parts
    from bench.samples import Samples

RESULTS = ROOT / "bench" / "results"
DOCUMENT = ROOT / "docs" / "performance.md"
PICTURE = ROOT / "docs" / "scaling.svg"
_VIRTME_QEMU = ROOT / "bench" / "virtme_microvm.py"
_PYTHON = "/usr/bin/python3"
_SECONDS = (Column("wall", "seconds, median (p10 to p90)", digits=2), Column("cpu", "CPU seconds", digits=2))


class Size(NamedTuple):
    """How much is done: rounds and seconds for each group, and the guests' workload."""

    version: int
    start: int
    waterfall: int
    guest: int
    memory: int
    start_budget_s: float
    guest_budget_s: float
    slow_every: int
    entries: int
    small: int
    trips: int
    stream_bytes: int
    devices: int
    devices_budget_s: float
    fio_ms: int
    idle_s: float
    joins: int
    scaling: int
    crowds: tuple[int, ...]


FULL = Size(40, 15, 11, 3, 1, 130, 120, 5, 2000, 2000, 500, 256 << 20, 9, 55, 500, 60, 40, 7, goals.CROWDS)
QUICK = Size(10, 2, 2, 1, 1, 60, 60, 2, 500, 200, 50, 32 << 20, 1, 40, 200, 5, 5, 1, goals.CROWDS[:2])


def main(words: Sequence[str]) -> int:
    """Run the benchmarks; 1 if something could not be measured (a missed goal is a result, not a failure)."""
    parser = argparse.ArgumentParser(
        prog="bench", description="Compares cloche with what it is made of, and with others."
    )
    parser.add_argument("--quick", action="store_true", help="few rounds: figures to look at, not to believe")
    parser.add_argument(
        "--only", action="append", choices=sorted(GROUPS), help="measure this group only; may be repeated"
    )
    parser.add_argument(
        "--docs", action="store_true", help=f"write the tables into {DOCUMENT.relative_to(ROOT)} too"
    )
    given = parser.parse_args(words)
    chosen = given.only or list(GROUPS)
    size = QUICK if given.quick else FULL
    begin = time.monotonic()
    parts = prepare(virtme=bool({"start", "guest"} & set(chosen)))
    host = hostinfo.collect(parts)
    groups = [GROUPS[name](parts, size) for name in GROUPS if name in chosen]
    host["load after"] = hostinfo.load()
    host["run"] = f"{'quick' if given.quick else 'full'}, {time.monotonic() - begin:.0f} seconds"
    merged: Samples = {name: metrics for group in groups for name, metrics in group.outcome.samples.items()}
    write(host, groups, goals.judge(merged), parts.missing, docs=given.docs)
    return 1 if parts.missing or any(group.outcome.failures for group in groups) else 0


def write(
    host: Mapping[str, str],
    groups: Sequence[Group],
    judged: Sequence[goals.Goal],
    missing: Mapping[str, str],
    *,
    docs: bool,
) -> None:
    """Print the report, and write it for people and for programs."""
    text = report.markdown(host, groups, judged, missing)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "latest.md").write_text(text, encoding="utf-8")
    data = report.as_data(host, groups, judged, missing)
    (RESULTS / "latest.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    if docs:
        DOCUMENT.write_text(
            report.replace_between(DOCUMENT.read_text(encoding="utf-8"), text), encoding="utf-8"
        )
        for group in groups:
            if group.name == "scaling":
                PICTURE.write_text(plot.draw(scaling.panels(group.outcome.samples)), encoding="utf-8")
    sys.stdout.write(text)


def to_exit(argv: Sequence[str], statuses: Sequence[int] = (0,)) -> Callable[[], dict[str, float]]:
    """Return a measurement of a program's start to its exit."""
    return lambda: rounds.run_to_exit(argv, statuses=statuses)


def wall_to_exit(argv: Sequence[str]) -> Callable[[], dict[str, float]]:
    """Return a measurement without CPU time.

    A domain's processes are reaped by the kernel when their namespace ends, and what they used is counted for nobody.
    """
    return lambda: {"wall": rounds.run_to_exit(argv)["wall"]}


def run_cloche(*words: str) -> list[str]:
    """Return ``cloche run`` as a user types it."""
    return [str(CLOCHE), "run", "--cold", *words]


def from_template(program: str) -> Callable[[], dict[str, float]]:
    """Return a measurement of ``cloche run`` as a user types it, who has run something before.

    Raises:
        MeasureError: (the measurement) No template can be made here.
    """

    def measure() -> dict[str, float]:
        # Costs nothing when it is there.
        rounds.run_to_exit([str(CLOCHE), "template", "build"])
        return {"wall": rounds.run_to_exit([str(CLOCHE), "run", "--", program])["wall"]}

    return measure


def from_pool(program: str) -> Callable[[], dict[str, float]]:
    """Return a measurement of ``cloche run`` as a user types it, for whom one machine waits.

    The pool is the measurement's own, and what it makes anew afterwards is waited for outside of what is measured.

    Raises:
        MeasureError: (the measurement) No machine can be made to wait here.
    """
    home = tempfile.mkdtemp(prefix="cloche-bench-")
    env = {**os.environ, "XDG_RUNTIME_DIR": home, "XDG_CONFIG_HOME": home}
    atexit.register(_end_pool, env, home)

    def measure() -> dict[str, float]:
        _run_beside(["pool", "set", "--keep", "1"], env)
        return {"wall": _run_beside(["run", "--", program], env)}

    return measure


def _run_beside(words: Sequence[str], env: Mapping[str, str]) -> float:
    """Run cloche and return how long that took, in seconds; machines that wait stay behind."""
    begin = time.perf_counter()
    done = subprocess.run(
        [str(CLOCHE), *words],
        env=env,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    wall = time.perf_counter() - begin
    if done.returncode:
        raise rounds.MeasureError(
            f"ended with status {done.returncode}: {done.stderr.decode(errors='replace')}"
        )
    return wall


def _end_pool(env: Mapping[str, str], home: str) -> None:
    _run_beside(["pool", "clear", "--forget"], env)
    shutil.rmtree(home, ignore_errors=True)


def measure_version(parts: Parts, size: Size) -> Group:
    """How long it takes to ask for the version."""
    del parts
    candidates = [
        Candidate(goals.VERSION, to_exit([str(CLOCHE), "--version"])),
        Candidate(goals.PYTHON, to_exit([_PYTHON, "-I", "-S", "-c", "pass"])),
    ]
    columns = (Column("wall", "ms, median (p10 to p90)", 1000), Column("cpu", "CPU ms", 1000))
    return Group(
        "version",
        "`cloche --version`",
        columns,
        rounds.take_turns(candidates, size.version, 30),
        goals.PYTHON,
    )


def measure_start(parts: Parts, size: Size) -> Group:
    """From start to exit of ``true``."""
    every = size.slow_every
    candidates = [
        Candidate(goals.CLOCHE, wall_to_exit(run_cloche("--", "true"))),
        Candidate(goals.TEMPLATE, from_template("true")),
        Candidate(goals.POOL, from_pool("true")),
        Candidate(goals.BWRAP, to_exit(machines.bubblewrapped(["true"]))),
    ]
    computer = parts.computer
    if computer:
        raw = machines.raw_qemu(computer, "/bin/true")
        wrapped = machines.bubblewrapped(machines.sandboxed(raw), [computer.kernel])
        candidates += [Candidate(goals.RAW, to_exit(raw)), Candidate(goals.RAW_BWRAP, to_exit(wrapped))]
        if parts.initramfs:
            busybox = machines.with_initramfs(computer, parts.initramfs)
            candidates.append(Candidate(goals.MICROVM, to_exit(busybox)))
            if parts.cloud_kernel:
                pc = machines.plain_pc(
                    computer.qemu, parts.cloud_kernel, parts.initramfs, computer.memory_mib
                )
                candidates.append(Candidate(goals.PC, to_exit(pc)))
    if parts.vng and parts.debian_kernel:
        shipped = machines.virtme(parts.vng, parts.debian_kernel, "true")
        candidates.append(Candidate(goals.VIRTME, virtme_to_exit(parts, shipped), every))
    if parts.vng and computer:
        same = virtme_same_kernel(parts, "true;busybox reboot -f")
        candidates.append(Candidate(goals.VIRTME_SAME, virtme_to_exit(parts, same, (0, 255)), every))
    outcome = rounds.take_turns(candidates, size.start, size.start_budget_s)
    return Group("start", "Start to exit of `true`", _SECONDS, outcome, goals.RAW)


def measure_forks(parts: Parts, size: Size) -> Group:
    """A domain that runs Python is forked and saved, beside raw QEMU's cold start."""
    with forks.parent() as name:
        candidates = [
            Candidate(goals.FORK, lambda: forks.measure_fork(name)),
            Candidate(goals.SNAPSHOT, lambda: forks.measure_snapshot(name), size.slow_every),
        ]
        if parts.computer:
            raw = machines.raw_qemu(parts.computer, "/bin/true")
            candidates.append(Candidate(goals.RAW_BESIDE, wall_to_exit(raw)))
        outcome = rounds.take_turns(candidates, size.start, size.start_budget_s)
    columns = (
        _SECONDS[0],
        Column("exec", "until a program has run in it, seconds", digits=2),
        Column("saved", "on the disk, times what the guest uses", digits=2),
    )
    return Group("forks", "Fork and snapshot of Python with 50 MiB", columns, outcome, goals.RAW_BESIDE)


def measure_profiles(parts: Parts, size: Size) -> Group:
    """A profile is made and copied; a run with one beside a run without."""
    del parts
    with profiles.used() as name:
        candidates = [
            Candidate(goals.TEMPORARY, lambda: profiles.measure("-t", "true")),
            Candidate(goals.WITH_PROFILE, lambda: profiles.measure("-p", name, "true")),
            Candidate(goals.PROFILE_LIST, lambda: profiles.measure("profile", "list")),
            Candidate(goals.PROFILE_NEW, lambda: profiles.measure_new(name)),
            Candidate(goals.PROFILE_CLONE, lambda: profiles.measure_clone(name), size.slow_every),
        ]
        outcome = rounds.take_turns(candidates, size.start, size.start_budget_s)
    title = f"Profiles: one that holds {profiles.USED_MIB} MiB"
    return Group("profile", title, _SECONDS[:1], outcome, goals.TEMPORARY)


def measure_trees(parts: Parts, size: Size) -> Group:
    """An archive of many files is unpacked, and git looks at them, on each place that can be written to."""
    outcome = trees.measure(parts.computer, size.guest, size.guest_budget_s)
    columns = tuple(Column(step, f"{step}, s", digits=2) for step in trees.STEPS)
    title = f"An archive of {trees.FILES} files, with its repository"
    return Group("trees", title, columns, outcome, goals.TREE_RAW)


def virtme_to_exit(
    parts: Parts, argv: Sequence[str], statuses: Sequence[int] = (0,)
) -> Callable[[], dict[str, float]]:
    """Return a measurement of virtme-ng, which must find its own programs on PATH."""
    return lambda: rounds.run_to_exit(argv, env=parts.vng_environment(), statuses=statuses)


def virtme_same_kernel(parts: Parts, command: str) -> list[str]:
    """Return virtme-ng on cloche's kernel, with as many processors and as much memory.

    A microvm without ACPI cannot be switched off, so ``command`` has to end with a restart, and virtme-ng never learns
    its status.
    """
    assert parts.computer is not None
    return machines.virtme(
        *(parts.vng, parts.computer.kernel, command, "--qemu", str(_VIRTME_QEMU)),
        *("--cpus", "1", "--memory", f"{parts.computer.memory_mib}M"),
    )


def measure_waterfall(parts: Parts, size: Size) -> Group:
    """Where the time of a start goes."""
    del parts
    argv = run_cloche("--timings", "--", "true")
    outcome = rounds.take_turns(
        [Candidate(goals.WATERFALL, lambda: timings.measure(argv))], size.waterfall, 60
    )
    marks = list(outcome.samples.get(goals.WATERFALL, {"host's share": []}))
    columns = tuple(
        Column(mark, mark if mark == "host's share" else f"until {mark}", digits=0) for mark in marks
    )
    return Group("waterfall", "Where the time of a cold start goes, in ms", columns, outcome)


def measure_guest(parts: Parts, size: Size) -> Group:
    """Streams and files in a guest."""
    work = workload.choose(size.entries, size.small, size.trips, size.stream_bytes)
    script = workload.script(work)
    candidates = [
        Candidate(
            goals.GUEST_CLOCHE,
            lambda: guestwork.measure(run_cloche("--no-tty", "--", "sh", "-c", script), None, work),
        )
    ]
    if parts.vng and parts.computer:
        virtme = virtme_same_kernel(parts, workload.script(work, "busybox reboot -f"))
        candidates.append(
            Candidate(goals.GUEST_VIRTME, lambda: guestwork.measure(virtme, parts.vng_environment(), work))
        )
    outcome = rounds.take_turns(candidates, size.guest, size.guest_budget_s, warm_up=False)
    columns = (
        Column("cat", "cat, MB/s"),
        Column("echo", "echo, ms", digits=2),
        *(Column(step, f"{step}, s", digits=2) for step in workload.STEPS),
        Column("start to first output", "start to first output, s"),
    )
    title = (
        f"In a guest, on the same kernel ({work.entries} entries of {work.tree}; {len(work.small)} files, "
        f"{work.small_bytes >> 10} KiB; {work.large}, {work.large_bytes >> 20} MiB; "
        f"{work.stream_bytes >> 20} MiB through cat)"
    )
    return Group("guest", title, columns, outcome)


def measure_memory(parts: Parts, size: Size) -> Group:
    """Memory of one domain, and of ten at once."""
    word = memory.READY.decode()
    ours = run_cloche("--no-tty", "--", "sh", "-c", f"echo {word}; exec cat")
    candidates = []
    for count in (1, goals.CROWD):
        name = f"{count} at once" if count > 1 else "one domain"
        candidates.append(Candidate(f"cloche, {name}", lambda n=count: memory.measure(ours, n)))  # type: ignore[misc]
        if parts.computer:
            raw = machines.raw_qemu(
                parts.computer, f'/bin/sh -c "echo {word}; exec sleep 3600"', console=True, shared_memory=True
            )
            candidates.append(
                Candidate(f"raw QEMU, {name}", lambda n=count, argv=raw: memory.measure(argv, n))  # type: ignore[misc]
            )
    outcome = rounds.take_turns(candidates, size.memory, 60, warm_up=False)
    columns = (
        Column("qemu", "QEMU without guest memory, MiB"),
        Column("others", "all others, MiB"),
        Column("guest", "guest memory, MiB"),
    )
    return Group("memory", "Memory of a domain (PSS, mean of the domains)", columns, outcome)


def measure_crowds(parts: Parts, size: Size) -> Group:
    """All memory of idle domains with small guests, as they start for a user: from a template."""
    word = memory.READY.decode()
    small = ["--memory", str(goals.SMALL_MIB)]
    script = f"echo {word}; exec cat"
    ours = [str(CLOCHE), "run", "--no-pool", "--no-tty", *small, "--", "sh", "-c", script]
    scaling.run("template", "build", *small)
    candidates = []
    for count in size.crowds:
        mine, theirs = goals.crowd_names(count)
        candidates.append(Candidate(mine, lambda n=count: memory.measure(ours, n)))  # type: ignore[misc]
        if parts.computer:
            computer = computer_with(goals.SMALL_MIB)
            init = f'/bin/sh -c "echo {word}; exec sleep 3600"'
            raw = machines.raw_qemu(computer, init, console=True, shared_memory=True)
            candidates.append(Candidate(theirs, lambda n=count, argv=raw: memory.measure(argv, n)))  # type: ignore[misc]
    outcome = rounds.take_turns(candidates, 1, 60, warm_up=False)
    columns = (
        Column("total", "all of it, MiB"),
        Column("qemu", "QEMU without guest memory, MiB"),
        Column("others", "all others, MiB"),
        Column("guest", "guest memory, MiB"),
    )
    title = f"Memory of idle domains with guests of {goals.SMALL_MIB} MiB (PSS, mean of the domains)"
    return Group("crowds", title, columns, outcome)


def measure_joins(parts: Parts, size: Size) -> Group:
    """Programs that join a running domain."""
    del parts
    outcome = joins.measure(size.joins, 30)
    columns = (Column("wall", "ms, median (p10 to p90)", 1000),)
    return Group("joins", "`true` in a domain that runs", columns, outcome)


def measure_scaling(parts: Parts, size: Size) -> Group:
    """A start beside shares, disks and running domains."""
    del parts
    columns = (Column("wall", "start to exit of `true`, ms, median (p10 to p90)", 1000, 0),)
    title = "A start beside shares, disks and running domains (from the template; [plot](scaling.svg))"
    return Group("scaling", title, columns, scaling.measure(size.scaling, 40))


def arranged(devices: str) -> list[str]:
    """Return ``cloche run`` with its devices in this arrangement."""
    return run_cloche("--no-tty", f"--devices={devices}")


def measure_devices(parts: Parts, size: Size) -> Group:
    """Files, random numbers, start and memory with the devices apart, bundled, and in the VMM."""
    del parts
    with devices.disk_image() as image:
        work = devices.Work(workload.choose(size.entries, size.small, 0, 0), image, size.fio_ms)
        candidates = [
            Candidate(name, lambda word=word: devices.measure_devices(arranged(word), work))  # type: ignore[misc]
            for word, name in goals.DEVICES.items()
        ]
        outcome = rounds.take_turns(candidates, size.devices, size.devices_budget_s)
        idle = Candidate(goals.IDLE, lambda: devices.measure_idle(arranged("process"), work, size.idle_s))
        stood = rounds.take_turns([idle], 1, size.idle_s, warm_up=False)
    outcome.samples.update(stood.samples)
    outcome.failures.update(stood.failures)
    columns = (
        Column("wall", "start to exit of `true`, s", digits=2),
        Column("tree walk", "tree walk, s", digits=2),
        Column("small files", "small files, s", digits=2),
        Column("random", "/dev/hwrng, MB/s", digits=2),
        Column("memory", "memory without the guest's, MiB"),
        Column("others", f"woken in {size.idle_s:g} s, besides QEMU", digits=0),
        Column("qemu", "QEMU woken", digits=0),
    )
    return Group("devices", "Devices apart, bundled, and in the VMM", columns, outcome)


def measure_disk(parts: Parts, size: Size) -> Group:
    """A disk, past the guest's cache, with the devices apart, bundled, and in the VMM."""
    del parts
    with devices.disk_image() as image:
        work = devices.Work(workload.choose(1, 0, 0, 0), image, size.fio_ms)
        candidates = [
            Candidate(name, lambda word=word: devices.measure_disk(arranged(word), work))  # type: ignore[misc]
            for word, name in goals.DISKS.items()
        ]
        outcome = rounds.take_turns(candidates, size.devices, size.devices_budget_s, warm_up=False)
    columns = tuple(
        Column(f"{pattern}-{depth}", f"{pattern} {depth}", digits=1 if pattern.startswith("rand") else 0)
        for pattern, _ in devices.PATTERNS
        for depth in devices.DEPTHS
    )
    title = (
        "A disk by fio, O_DIRECT, at depths of 1, 8 and 32 "
        "(in blocks of 128 KiB, MB/s; at random in blocks of 4 KiB, thousands a second)"
    )
    return Group("disk", title, columns, outcome)


GROUPS: dict[str, Callable[[Parts, Size], Group]] = {
    "version": measure_version,
    "start": measure_start,
    "waterfall": measure_waterfall,
    "guest": measure_guest,
    "forks": measure_forks,
    "profile": measure_profiles,
    "trees": measure_trees,
    "joins": measure_joins,
    "scaling": measure_scaling,
    "memory": measure_memory,
    "crowds": measure_crowds,
    "devices": measure_devices,
    "disk": measure_disk,
}
