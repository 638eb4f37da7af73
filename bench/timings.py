"""What ``cloche run --timings`` tells of a start."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

from bench.rounds import TIMEOUT_S, MeasureError

if TYPE_CHECKING:
    from collections.abc import Sequence

#: ``cloche:   103.0 ms  +  103.0  ####   python``: when it was reached, how long after the one before, a bar, its name.
_LINE = re.compile(r"cloche:\s+(?P<at>[\d.]+) ms\s+\+\s*(?P<step>[\d.]+)\s+#*\s*(?P<name>\S.*)")
#: From here on the guest works, and until the program's end the host only waits.
_SENT_OFF, _PROGRAM_ENDED, _ENDED = "processes sent off", "program ended", "ended"


def measure(argv: Sequence[str]) -> dict[str, float]:
    """Run cloche with ``--timings`` and return milliseconds for every mark, and the host's share.

    Raises:
        MeasureError: It failed, or its waterfall is not as expected.
    """
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=TIMEOUT_S,
        check=False,
    )
    said = done.stderr.decode("utf-8", "replace")
    if done.returncode:
        raise MeasureError(f"ended with status {done.returncode}: {said.strip()[-200:]}")
    return parse(said)


def parse(said: str) -> dict[str, float]:
    """Return milliseconds since the start for every mark, and ``host's share``.

    The share is what a start costs beside the guest: all until the processes are sent off, and all after the
    program's end. What the host does while the machine boots takes no time of the start.

    Raises:
        MeasureError: A mark is missing.
    """
    marks = {
        match["name"].strip(): float(match["at"]) for match in map(_LINE.search, said.splitlines()) if match
    }
    try:
        share = marks[_SENT_OFF] + marks[_ENDED] - marks[_PROGRAM_ENDED]
    except KeyError as error:
        raise MeasureError(f"--timings does not tell when {error.args[0]}") from error
    return {"host's share": share, **marks}
