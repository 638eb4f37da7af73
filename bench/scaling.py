"""Start to exit of ``true`` beside the number of shares, of disks, and of domains that run already."""

from __future__ import annotations

import os
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from bench import rounds
from bench.goals import COUNTS
from bench.plot import Panel
from bench.prepare import CLOCHE
from bench.rounds import TIMEOUT_S, Candidate, MeasureError, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.samples import Samples

_DISK_BYTES = 1 << 20


def name_of(what: str, count: int) -> str:
    """Return the name of a line in the tables."""
    return f"{count} {what}"


def measure(number: int, budget_s: float) -> Outcome:
    """Measure all of it: ``number`` rounds for each count, or fewer when the time is used up."""
    # As for somebody who has run it before.
    run("template", "build")
    for count in COUNTS["disks"][1:]:
        run("template", "build", "--drives", str(count))
    with tempfile.TemporaryDirectory(prefix="cloche-bench-") as home:
        still = [
            *(
                Candidate(name_of("shares", count), _start(_shares(home, count)))
                for count in COUNTS["shares"]
            ),
            *(Candidate(name_of("disks", count), _start(_disks(home, count))) for count in COUNTS["disks"]),
        ]
        outcome = rounds.take_turns(still, number, budget_s / 2)
        with ExitStack() as running:
            for fewer, count in pairwise((0, *COUNTS["running domains"])):
                for one in range(fewer, count):
                    running.enter_context(idle(f"bench-{os.getpid()}-{one}"))
                candidate = Candidate(name_of("running domains", count), _start([]))
                beside = rounds.take_turns([candidate], number, budget_s / 8)
                outcome.samples.update(beside.samples)
                outcome.failures.update(beside.failures)
    return outcome


def panels(samples: Samples) -> list[Panel]:
    """Return what is to be plotted."""
    return [
        Panel(what, {count: samples.get(name_of(what, count), {}).get("wall", []) for count in counts})
        for what, counts in COUNTS.items()
    ]


def _start(options: list[str]) -> Callable[[], dict[str, float]]:
    argv = [str(CLOCHE), "run", "--no-pool", *options, "--", "true"]
    return lambda: {"wall": rounds.run_to_exit(argv)["wall"]}


def _shares(home: str, count: int) -> list[str]:
    words = []
    for number in range(count):
        path = Path(home, f"share-{number}")
        path.mkdir(exist_ok=True)
        words += ["--share", f"{path}:at=/mnt/{number}"]
    return words


def _disks(home: str, count: int) -> list[str]:
    words = []
    for number in range(count):
        path = Path(home, f"disk-{count}-{number}")
        with path.open("wb") as image:
            image.truncate(_DISK_BYTES)
        words += ["--disk", f"d{number}={path}"]
    return words


@contextmanager
def idle(name: str, *options: str) -> Iterator[str]:
    """Provide a detached domain that stands still.

    Raises:
        MeasureError: It could not be started.
    """
    run("run", "--detach", "--name", name, *options, "--", "sleep", "3600")
    try:
        yield name
    finally:
        for words in (("stop", "-t", "0", name), ("rm", name)):
            subprocess.run([str(CLOCHE), *words], capture_output=True, timeout=TIMEOUT_S, check=False)


def run(*words: str) -> None:
    """Run cloche to its end.

    Raises:
        MeasureError: It has failed.
    """
    done = subprocess.run(
        [str(CLOCHE), *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise MeasureError(done.stderr.decode("utf-8", "replace").strip()[-200:])
