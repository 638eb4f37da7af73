"""What a guest does with bytes and files, timed from outside within one life of the guest.

The guest says on its standard output when a step is done, and the clock is read here when that arrives. So the boot is
not in it, guests need not have right clocks, and both guests are measured by the same hand.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING

from bench import workload
from bench.rounds import TIMEOUT_S, MeasureError, adopted_orphans, last_line, start, wait_for_end

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.workload import Workload

_BLOCK = bytes(65536)
#: Round trips before the ones that count.
_WARM_TRIPS = 20


def measure(argv: Sequence[str], env: Mapping[str, str] | None, work: Workload) -> dict[str, float]:
    """Start a guest that runs ``workload.script`` and return seconds for each step, MB/s and ms for the streams.

    Raises:
        MeasureError: The guest did something else, or nothing.
    """
    with (
        adopted_orphans() as reap,
        tempfile.TemporaryFile() as said,
        start(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, env=env) as process,
    ):
        try:
            metrics = _Conversation(process, work).run()
        except (MeasureError, BrokenPipeError) as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise MeasureError(f"{error}; its last line was: {last_line(said)}") from error
        wait_for_end(process, TIMEOUT_S)
        reap()
        return metrics


class _Conversation:
    """What is said with one guest, in the order of the script."""

    def __init__(self, process: subprocess.Popen[bytes], work: Workload) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout
        self._in, self._out = process.stdin.fileno(), process.stdout.fileno()
        self._work = work
        self._deadline = time.monotonic() + TIMEOUT_S
        self._heard = b""

    def run(self) -> dict[str, float]:
        """Go through all steps."""
        begin = time.perf_counter()
        self._wait_for(b"@0\n")
        metrics = {"start to first output": time.perf_counter() - begin}
        os.set_blocking(self._in, False)
        self._send("".join(f"{path}\n" for path in self._work.small).encode())
        self._wait_for(b"@1\n")
        expected = (
            self._work.entries,
            self._work.entries,
            self._work.small_bytes,
            self._work.small_bytes,
            None,
        )
        before = time.perf_counter()
        for number, (step, count) in enumerate(zip(workload.STEPS, expected, strict=True), 2):
            answer = self._wait_for(b"@%d\n" % number)
            now = time.perf_counter()
            if count is not None and int(answer) != count:
                raise MeasureError(f"{step}: the guest found {int(answer)} instead of {count}")
            metrics[step] = now - before
            before = now
        metrics["echo"] = self._echo()
        metrics["cat"] = self._stream()
        self._stdin.close()
        while os.read(self._out, 65536):
            pass
        return metrics

    def _echo(self) -> float:
        """Return the median milliseconds of a round trip of one byte."""
        trips = []
        for number in range(self._work.round_trips + _WARM_TRIPS):
            begin = time.perf_counter()
            os.write(self._in, b"x")
            self._await_output()
            if os.read(self._out, 16) != b"x":
                raise MeasureError("the echo is not what was sent")
            if number >= _WARM_TRIPS:
                trips.append((time.perf_counter() - begin) * 1000)
        trips.sort()
        return trips[len(trips) // 2]

    def _stream(self) -> float:
        """Return MB/s of bytes that went in and came back."""
        size = self._work.stream_bytes
        begin = time.perf_counter()
        self._send(_BLOCK, size)
        return size / 1e6 / (time.perf_counter() - begin)

    def _send(self, data: bytes, echoed: int = 0) -> None:
        """Send ``data``; or ``echoed`` bytes made of it over and over, reading as many back meanwhile."""
        left, back, view = echoed or len(data), echoed, memoryview(data)
        while left or back:
            wanted = [self._out] if back else []
            ready, writable, _ = select.select(wanted, [self._in] if left else [], [], self._time_left())
            if not ready and not writable:
                raise MeasureError(f"the guest stopped with {left} bytes to send and {back} to come")
            if writable:
                place = ((echoed or len(data)) - left) % len(data)
                left -= os.write(self._in, view[place : place + left])
            if ready:
                got = len(os.read(self._out, 1 << 20))
                if not got:
                    raise MeasureError(f"the guest closed its output with {back} bytes to come")
                back -= got

    def _wait_for(self, mark: bytes) -> bytes:
        """Read up to a mark and return what came before it."""
        while mark not in self._heard:
            self._await_output()
            block = os.read(self._out, 4096)
            if not block:
                raise MeasureError(f"the guest ended before {mark.decode().strip()}")
            # virtme-ng's console turns line ends into two bytes; its ports do not.
            self._heard += block.replace(b"\r", b"")
        before, _, self._heard = self._heard.partition(mark)
        return before

    def _await_output(self) -> None:
        if not select.select([self._out], [], [], self._time_left())[0]:
            raise MeasureError("the guest says nothing any more")

    def _time_left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())
