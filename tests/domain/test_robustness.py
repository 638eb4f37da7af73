"""Very many domains: one after the other, and at once. Nothing stays, and each of them answers."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.belongings import belongings
from support.domains import OWN

if TYPE_CHECKING:
    from support.runs import Runner

SCRIPT = Path(__file__).with_name("robustness_script.py")
STARTS = 200
CROWD = 40
#: Python's own memory may grow by what it keeps for later, in MiB; what leaked at each start would be more.
_ALLOWED_MIB = 4


def read_line(process: subprocess.Popen[bytes]) -> dict[str, object]:
    """Return what the script says, or fail with what it failed with."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        _, errors = process.communicate(timeout=60)
        pytest.fail(errors.decode())
    said: dict[str, object] = json.loads(line)
    return said


@pytest.mark.long
def test_starts_and_stops_in_a_row_leak_nothing(cloche: Runner) -> None:
    """Neither in the program that starts them (descriptors, threads, memory) nor on the host, not even killed ones."""
    source = cloche.user.project / "src"
    program = f"import sys; sys.path.insert(0, {str(source)!r}); exec(compile(sys.argv[3], 'script', 'exec'))"
    words = ["/usr/bin/python3", "-c", program, cloche.program, str(STARTS), SCRIPT.read_text()]
    with cloche.user.popen(words, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        first = read_line(process)
        before = belongings(cloche.user)
        process.stdin.write(b"\n")
        process.stdin.flush()
        last = read_line(process)
        after = belongings(cloche.user)
        _, errors = process.communicate(b"\n", timeout=60)
    assert errors == b""
    assert {**last, "mib": 0} == {**first, "mib": 0}
    assert int(str(last["mib"])) - int(str(first["mib"])) <= _ALLOWED_MIB
    for name, one, other in zip(before._fields, before, after, strict=True):
        assert other == one, name


@pytest.mark.long
def test_a_crowd_started_at_once_answers_and_goes(cloche: Runner) -> None:
    """Forty, each with its own name, answer all, are listed all, and go all at the same time, without a rest."""
    before = belongings(cloche.user)
    names = [f"crowd{number}{OWN}" for number in range(CROWD)]
    with ThreadPoolExecutor(CROWD) as threads:

        def each(*words: str) -> list[tuple[int, bytes, bytes]]:
            """Do the same with all of them at once; NAME stands for its name."""
            commands = [[name if word == "NAME" else word for word in words] for name in names]
            done = list(threads.map(lambda command: cloche(*command, timeout=600), commands))
            return [(one.returncode, one.stdout, one.stderr) for one in done]

        try:
            started = each("run", "-d", "--name", "NAME", "--", "sleep", "3600")
            assert started == [(0, f"{name}\n".encode(), b"") for name in names]
            said = each("exec", "NAME", "sh", "-c", "cat /proc/sys/kernel/random/boot_id; uname -s")
            assert [(status, errors) for status, _, errors in said] == [(0, b"")] * CROWD
            boots = {output.splitlines()[0] for _, output, _ in said}
            assert len(boots) == CROWD
            rows = [row for row in json.loads(cloche("ps", "--json").stdout) if row["name"] in names]
            assert [(row["state"], row["answers"]) for row in rows] == [("running", True)] * CROWD
        finally:
            stopped = each("stop", "-t", "0", "NAME")
            forgotten = each("rm", "NAME")
    assert {status for status, _, _ in stopped} == {status for status, _, _ in forgotten} == {0}
    after = belongings(cloche.user)
    for name, one, other in zip(before._fields, before, after, strict=True):
        assert other == one, name
