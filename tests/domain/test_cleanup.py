"""Whatever is killed, nothing stays (DESIGN section 3, step 7)."""

from __future__ import annotations

import os
import random
import signal
from typing import TYPE_CHECKING

import pytest

from support import leaks
from support.domains import domain_processes, kill_part

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from support.runs import Runner

#: The design's promise.
GONE_WITHIN_S = 1.0
#: A busy test machine may need longer to schedule what has been killed already.
PATIENCE_S = 10.0


def run_directories(cloche: Runner) -> list[Path]:
    """Return the run directories of the user; what begins with @ is about names."""
    return sorted((cloche.user.home / ".cache" / "cloche" / "run").glob("[!@]*"))


def start(cloche: Runner) -> subprocess.Popen[bytes]:
    """Start a program that says when it runs and then stays.

    Not `sh -c "echo ready; sleep 1000"`: dash catches SIGINT, and loses one that comes right before the exec of its
    last command (on the host, too, in one of seven such trials).
    """
    return cloche.popen("perl", "-e", '$| = 1; print "ready\n"; sleep')


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("moment", ["running", "starting"])
def test_nothing_stays_after_a_signal(cloche: Runner, signo: signal.Signals, moment: str) -> None:
    """Every process of the domain is gone after the supervisor got a signal, at its start and while it runs."""
    before = leaks.processes()
    with start(cloche) as process:
        assert process.stdout is not None
        if moment == "running":
            assert process.stdout.readline() == b"ready\n"
        process.send_signal(signo)
        process.wait(60)
    assert not leaks.wait_for_end(leaks.leaked(before, leaks.processes(), os.getpid()), PATIENCE_S)


@pytest.mark.parametrize("victim", ["qemu-system-x86", "cloche-fs", "cloche-warden"])
def test_a_killed_part_ends_the_domain_with_the_reason(cloche: Runner, victim: str) -> None:
    """When the VMM, a file server or the warden is killed, the run ends with 125 and says what happened."""
    before = leaks.processes()
    with start(cloche) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        kill_part(process.pid, victim)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 125
    assert b"cloche: the " in errors
    assert b"Traceback" not in errors
    assert not leaks.wait_for_end(leaks.leaked(before, leaks.processes(), os.getpid()), PATIENCE_S)


def test_run_directories_are_removed(cloche: Runner) -> None:
    """The run directory goes at the end; one whose supervisor was killed goes at the next command."""
    with start(cloche) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert len(run_directories(cloche)) == 1
        process.kill()
    assert len(run_directories(cloche)) == 1
    assert cloche("true").returncode == 0
    assert run_directories(cloche) == []


@pytest.mark.long
def test_kill_at_fifty_random_moments(cloche: Runner) -> None:
    """Killing any process of a domain at any moment of start, run and end leaves nothing behind."""
    dice = random.Random(20)
    for _ in range(50):
        before = leaks.processes()
        with cloche.popen("sh", "-c", "echo ready; head -c 3000000 /dev/zero; sleep 0.2") as process:
            assert process.stdout is not None
            # Moments are counted in what happens (bytes, processes), not in time.
            wanted = dice.choice([0, 0, 1, 2, 3, 4])
            while process.poll() is None and len(domain_processes(process.pid)) < wanted:
                os.sched_yield()
            if dice.random() < 0.5:
                process.stdout.read(dice.choice([1, 6, 100_000, 3_000_000]))
            victims = [process.pid, *domain_processes(process.pid)]
            try:
                os.kill(dice.choice(victims), signal.SIGKILL)
            except ProcessLookupError:
                pass  # it ended by itself just now
            process.stdout.close()
            process.wait(60)
        left = leaks.wait_for_end(leaks.leaked(before, leaks.processes(), os.getpid()), PATIENCE_S)
        assert not left
    assert cloche("true").returncode == 0
    assert run_directories(cloche) == []
