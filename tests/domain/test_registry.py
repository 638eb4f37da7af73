"""kill -9 of any process in any state: nothing dead is listed, every name is free, no half snapshot is there."""

from __future__ import annotations

import json
import os
import signal
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support import leaks
from support.domains import OWN, domain_processes

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from support.runs import Runner

#: Says that it runs and when it is asked to end, which it does not do.
DEAF = "trap 'echo asked' TERM; echo up; while :; do sleep 0.1; done"
VICTIMS = ("supervisor", "warden", "init", "vmm", "files")
#: What the design allows a domain's processes, and what a busy machine adds.
_END_TIMEOUT_S = 20.0


def running(runner: Runner) -> list[dict[str, object]]:
    """Return what `ps` says runs."""
    rows: list[dict[str, object]] = json.loads(runner("ps", "--json").stdout)
    return rows


def snapshots_of(runner: Runner) -> Path:
    """Return where the user's snapshots are."""
    return runner.user.home / ".local" / "share" / "cloche" / "snapshots"


def parts_of(runner: Runner, name: str) -> dict[str, int]:
    """Return the process ids of a domain by what each is."""
    warden = next(int(str(row["warden"])) for row in running(runner) if row["name"] == name)
    status = Path(f"/proc/{warden}/status").read_text()
    supervisor = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid:"))
    below = domain_processes(warden)
    names = {Path(f"/proc/{pid}/comm").read_text()[:4]: pid for pid in below}
    return {
        "supervisor": supervisor,
        "warden": warden,
        "init": below[0],
        "vmm": names["qemu"],
        "files": next(pid for pid in below if Path(f"/proc/{pid}/comm").read_text() == "cloche-fs\n"),
    }


def wait_until_said(runner: Runner, name: str, words: bytes) -> None:
    """Return when the domain's program has said something."""
    with runner.popen("logs", "-f", name) as following:
        assert following.stdout is not None
        assert any(line == words for line in following.stdout)
        following.kill()


@contextmanager
def paused(runner: Runner, name: str) -> Iterator[tuple[subprocess.Popen[bytes], ...]]:
    """It stands still."""
    assert runner("pause", name).returncode == 0
    yield ()


@contextmanager
def stopping(runner: Runner, name: str) -> Iterator[tuple[subprocess.Popen[bytes], ...]]:
    """Its program was asked to end, and somebody waits for that."""
    with runner.popen("stop", "-t", "600", name) as client:
        wait_until_said(runner, name, b"asked\n")
        yield (client,)


@contextmanager
def joined(runner: Runner, name: str) -> Iterator[tuple[subprocess.Popen[bytes], ...]]:
    """Another program runs in it, on somebody's streams; and somebody else waits for the first one's end."""
    with (
        runner.popen("exec", name, "sh", "-c", "echo in; exec sleep 600") as client,
        runner.popen("wait", name) as waiting,
    ):
        assert client.stdout is not None
        assert client.stdout.readline() == b"in\n"
        yield client, waiting


@contextmanager
def saving(runner: Runner, name: str) -> Iterator[tuple[subprocess.Popen[bytes], ...]]:
    """It is being saved: the file of its memory has been begun."""
    home = snapshots_of(runner)
    with runner.popen("snapshot", "save", name, name) as client:
        while client.poll() is None and not list(home.glob(".new-*/memory")):
            os.sched_yield()
        yield (client,)


def hold_consistent(runner: Runner, name: str, processes: list[leaks.Process]) -> None:
    """Hold that nothing of a killed domain is left or listed, and that its name can be had at once."""
    assert not leaks.wait_for_end(processes, _END_TIMEOUT_S)
    assert [row for row in running(runner) if row["name"] == name] == []
    listed = json.loads(runner("ps", "--all", "--json").stdout)
    assert {row["state"] for row in listed if row["name"] == name} <= {"ended"}
    again = runner("run", "-d", "--name", name, "--", "true")
    assert (again.returncode, again.stdout) == (0, name.encode() + b"\n"), again.stderr
    runner("wait", name)
    while runner("rm", name).returncode == 0:
        pass
    for row in json.loads(runner("snapshot", "list", "--check", "--json").stdout):
        # A save that had ended before the kill is whole.
        assert row["damage"] == ""
        if row["name"] == name:
            assert runner("snapshot", "delete", name).returncode == 0
    assert list(snapshots_of(runner).glob(".*")) == []
    assert not any(name in path.name for path in (runner.user.home / ".cache/cloche/run").iterdir())


@pytest.mark.long
@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("state", [paused, stopping, joined, saving], ids=lambda state: state.__name__)
def test_whatever_is_killed_in_whatever_state(
    cloche: Runner,
    state: Callable[[Runner, str], AbstractContextManager[tuple[subprocess.Popen[bytes], ...]]],
    victim: str,
) -> None:
    """The domain is gone, whoever waited for it is told in a sentence, and the registry is as if it had never been."""
    name = f"{state.__name__}-{victim}{OWN}"
    started = cloche("run", "-d", "--name", name, "--", "sh", "-c", DEAF)
    assert started.returncode == 0, started.stderr
    wait_until_said(cloche, name, b"up\n")
    with ExitStack() as stack:
        parts = parts_of(cloche, name)
        table = leaks.processes()
        processes = [table[pid] for pid in (*parts.values(), *domain_processes(parts["supervisor"]))]
        clients = stack.enter_context(state(cloche, name))
        os.kill(parts[victim], signal.SIGKILL)
        for client in clients:
            _, errors = client.communicate(timeout=60)
            assert b"Traceback" not in errors, errors.decode()
    hold_consistent(cloche, name, processes)


@pytest.mark.long
@pytest.mark.parametrize("count", range(1, 7))
@pytest.mark.parametrize("newest", [True, False], ids=["newest", "oldest"])
def test_whatever_is_killed_at_the_start(cloche: Runner, count: int, newest: bool) -> None:
    """A detached start of which the first or the last process dies as soon as there are so many."""
    name = f"starting-{count}{OWN}"
    with cloche.popen("run", "-d", "--name", name, "--", "sh", "-c", DEAF) as client:
        found: list[int] = []
        while client.poll() is None and len(found) < count:
            found = domain_processes(client.pid)
            os.sched_yield()
        table = leaks.processes()
        processes = [table[pid] for pid in found if pid in table]
        if found:
            try:
                os.kill(found[-1 if newest else 0], signal.SIGKILL)
            except ProcessLookupError:
                pass  # it ended by itself just now
        _, errors = client.communicate(timeout=60)
    assert b"Traceback" not in errors, errors.decode()
    if client.returncode == 0:
        # It had begun before: its supervisor is nobody's child any more.
        cloche("stop", "-t", "0", name)
    hold_consistent(cloche, name, processes)


@pytest.mark.long
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_fork_whose_command_is_killed_leaves_nothing(cloche: Runner, count: int) -> None:
    """Its supervisor comes up while the domain is saved; nothing of it stays, and the domain goes on."""
    name, fork = f"parent-{count}{OWN}", f"fork-{count}{OWN}"
    started = cloche("run", "-d", "--name", name, "--", "sh", "-c", DEAF)
    assert started.returncode == 0, started.stderr
    try:
        with cloche.popen("fork", name, "--name", fork) as client:
            found: list[int] = []
            while client.poll() is None and len(found) < count:
                found = domain_processes(client.pid)
                os.sched_yield()
            table = leaks.processes()
            processes = [table[pid] for pid in found if pid in table]
            client.kill()
            client.communicate(timeout=60)
        hold_consistent(cloche, fork, processes)
        assert cloche("exec", name, "true").returncode == 0
    finally:
        cloche("stop", "-t", "0", name)
        assert cloche("rm", name).returncode == 0
