"""The devices of a guest in processes of their own, bundled in one, and in the VMM: what the separation costs.

Everything is timed from outside, as in ``guestwork``; only the disk is measured inside, by fio.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.memory import family
from bench.rounds import TIMEOUT_S, MeasureError, adopted_orphans, last_line, run_to_exit, start, wait_for_end

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.workload import Workload

#: Bytes of the disk, and how fio goes about it: sequentially in large blocks, at random in small ones.
DISK_BYTES = 256 << 20
PATTERNS = (("read", "128k"), ("write", "128k"), ("randread", "4k"), ("randwrite", "4k"))
DEPTHS = (1, 8, 32)
#: Random bytes that are read from the device.
RANDOM_BYTES = 256 << 10
_MIB = 1 << 20


class Work(NamedTuple):
    """What a guest does with its devices.

    Attributes:
        files: Which tree it walks and which small files it reads.
        image: The file of the host that is its disk.
        fio_ms: For how long each pattern and depth is measured, in milliseconds.
    """

    files: Workload
    image: Path
    fio_ms: int


@contextmanager
def disk_image() -> Iterator[Path]:
    """Provide a file for a disk, without holes: its pages are in the host's cache."""
    with tempfile.NamedTemporaryFile(prefix="cloche-bench-", suffix=".img") as file:
        block = os.urandom(_MIB)
        for _ in range(DISK_BYTES // _MIB):
            file.write(block)
        file.flush()
        yield Path(file.name)


def measure_devices(run: Sequence[str], work: Work) -> dict[str, float]:
    """Start a guest twice: for ``true``, and for files and random numbers; returns seconds, MB/s and MiB.

    ``run`` is ``cloche run`` with its options.

    Raises:
        MeasureError: The guest did something else, or nothing.
    """
    metrics = {"wall": run_to_exit([*run, "--", "true"])["wall"]}
    files = work.files
    count = RANDOM_BYTES // 4096
    script = (
        f"head -n {len(files.small)} > /run/names; echo @0; find {files.tree} -xdev | wc -l; echo @1\n"
        "xargs cat < /run/names | wc -c; echo @2\n"
        f"dd if=/dev/hwrng bs=4096 count={count} iflag=fullblock 2>/dev/null | wc -c; echo @3; read go"
    )
    words = [*run, "--privileged", "--hwrng", f"--disk=bench={work.image}", "--", "sh", "-c", script]
    with running(words) as guest:
        guest.say("".join(f"{path}\n" for path in files.small))
        guest.hear(0)
        metrics["tree walk"] = guest.time(1, files.entries)
        metrics["small files"] = guest.time(2, files.small_bytes)
        metrics["random"] = RANDOM_BYTES / 1e6 / guest.time(3, RANDOM_BYTES)
        # Packets through the network's front come here, as soon as there is one.
        found = family(guest.pid)
        metrics["memory"] = sum(process.private_mib for process in found)
        metrics["guest memory"] = sum(process.guest_mib for process in found)
        guest.say("\n")
    return metrics


def measure_disk(run: Sequence[str], work: Work) -> dict[str, float]:
    """Start a guest that reads and writes its disk past its own cache; returns MB/s and requests a second.

    Raises:
        MeasureError: fio found something else, or nothing.
    """
    words = [
        *run,
        "--privileged",
        f"--disk=bench={work.image}",
        "--",
        "sh",
        "-c",
        f"{fio(work.fio_ms)}; echo @0",
    ]
    with running(words) as guest:
        return read_fio(guest.hear(0))


def fio(duration_ms: int) -> str:
    """Return the command: one job after the other for each pattern and depth."""
    common = (
        "--filename=/dev/disk/by-tag/bench --direct=1 --ioengine=libaio --thread --gtod_reduce=1 --norandommap"
        f" --time_based --runtime={duration_ms}ms --output-format=json"
    )
    jobs = [
        f"--name={pattern}-{depth} --rw={pattern} --bs={block} --iodepth={depth} --stonewall"
        for pattern, block in PATTERNS
        for depth in DEPTHS
    ]
    return f"fio {common} {' '.join(jobs)}"


def read_fio(text: str) -> dict[str, float]:
    """Return the figures of fio's report: MB/s of sequential jobs, thousands of requests a second of random ones."""
    try:
        jobs = json.loads(text[text.index("{") :])["jobs"]
        metrics = {}
        for job in jobs:
            side = job["read" if "read" in job["jobname"] else "write"]
            is_random = job["jobname"].startswith("rand")
            metrics[job["jobname"]] = side["iops"] / 1e3 if is_random else side["bw_bytes"] / 1e6
    except (ValueError, KeyError) as error:
        raise MeasureError(f"fio's report cannot be read: {error!r}") from None
    if len(metrics) != len(PATTERNS) * len(DEPTHS):
        raise MeasureError(f"fio reported {len(metrics)} jobs")
    return metrics


def measure_idle(run: Sequence[str], work: Work, seconds: float) -> dict[str, float]:
    """Let a guest with every device stand still; returns how often its processes woke up by themselves.

    ``others`` are all of the domain but QEMU, the supervisor among them.

    Raises:
        MeasureError: The guest did not come up, or a process came or went meanwhile.
    """
    # No random numbers: the guest's kernel asks for them now and then, and does not stand still.
    words = [*run, f"--disk=bench={work.image}", "--share=/usr/share"]
    with running([*words, "--", "sh", "-c", "ls /usr/share; echo @0; read go"]) as guest:
        guest.hear(0)
        # What has just been done has its aftermath.
        time.sleep(min(seconds, 5.0))
        before = switches(guest.pid)
        time.sleep(seconds)
        after = switches(guest.pid)
        guest.say("\n")
    if before.keys() != after.keys():
        raise MeasureError("a process of the idle domain came or went")
    woken = {"qemu": 0, "others": 0}
    for key, (name, count) in after.items():
        woken["qemu" if name.startswith("qemu") else "others"] += count - before[key][1]
    return {name: float(count) for name, count in woken.items()}


def switches(pid: int) -> dict[int, tuple[str, int]]:
    """Return for each thread of a process and its descendants the process's name and its voluntary context switches."""
    found = {}
    for process in family(pid):
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            fields = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
            found[int(task.name)] = (process.name, int(fields["voluntary_ctxt_switches"]))
    return found


@contextmanager
def running(argv: Sequence[str]) -> Iterator[Guest]:
    """Start a guest, and in the end wait for it; one that was given up is ended.

    Raises:
        MeasureError: It failed, or what was measured in it did.
    """
    with (
        adopted_orphans() as reap,
        tempfile.TemporaryFile() as said,
        start(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said) as process,
    ):
        try:
            yield Guest(process)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, (MeasureError, BrokenPipeError)):
                raise MeasureError(f"{error}; its last line was: {last_line(said)}") from error
            raise
        wait_for_end(process, TIMEOUT_S)
        reap()
        if process.returncode:
            raise MeasureError(f"ended with status {process.returncode}: {last_line(said)}")


class Guest:
    """A guest whose script says ``@N`` after its N-th step."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid
        self._heard = b""
        self._last = 0.0

    def say(self, text: str) -> None:
        """Write to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    def hear(self, step: int) -> str:
        """Return what it says before it is done with a step."""
        assert self._process.stdout is not None
        mark, fd = b"@%d\n" % step, self._process.stdout.fileno()
        while mark not in self._heard:
            if not select.select([fd], [], [], TIMEOUT_S)[0]:
                raise MeasureError("the guest says nothing any more")
            block = os.read(fd, 65536)
            if not block:
                raise MeasureError(f"the guest ended before its step {step}")
            self._heard += block
        self._last = time.perf_counter()
        before, _, self._heard = self._heard.partition(mark)
        return before.decode("utf-8", "replace")

    def time(self, step: int, expected: int) -> float:
        """Return the seconds since the step before; it must say the number that is expected."""
        before = self._last
        answer = self.hear(step).strip()
        if answer != str(expected):
            raise MeasureError(f"step {step}: the guest found {answer!r} instead of {expected}")
        return self._last - before
