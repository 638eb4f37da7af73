"""Whatever is killed, nothing of a domain stays (DESIGN, section 3, step 7).

Each attack runs twice: with the warden, which must leave nothing alive, and with a mutant of it that was compiled
without the lifelines, which must leave processes alive. Else the test would prove nothing.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from cloche.errors import LaunchError
from cloche.host.warden import Ready, Spawned, Warden
from setuplib import cargo
from support.wardens import (
    PATIENCE_S,
    ROLES,
    Role,
    descendants,
    make_role,
    next_events,
    read_line,
    shell,
    wait_dead,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.users import OrdinaryUser

ROOT = Path(__file__).resolve().parents[2]
TARGET = "x86_64-unknown-linux-gnu"
#: The time the design gives processes to be gone; what is alive after it has been left behind.
GONE_WITHIN_S = 1.0

#: Processes that try to get away: another session, no parent, every signal ignored that can be.
FUGITIVES = """
    trap '' HUP INT QUIT TERM USR1 USR2 ALRM PIPE
    sleeper='echo gone >&3; exec sleep 100000'
    sh -c "$sleeper" &
    setsid sh -c "$sleeper" &
    setsid sh -c "(setsid sh -c '$sleeper' &)" &
    (setsid nohup sh -c 'echo gone >&3; while :; do sleep 100000; done' >/dev/null 2>&1 &)
    eval "$sleeper"
"""
ANNOUNCED = 5


@pytest.fixture(params=ROLES)
def role(request: pytest.FixtureRequest, ordinary: OrdinaryUser) -> Role:
    """Provide root and an ordinary user, one after the other."""
    return make_role(request.param, ordinary)


@pytest.fixture(scope="session")
def mutant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Provide a warden without lifelines, compiled for this test only, where every user can run it."""
    found = cargo.find()
    assert found is not None, "there is no cargo; `make setup` installs one"
    target = ROOT / "target" / "mutants"
    subprocess.run(
        [
            *(found.path, "build", "--locked", "--quiet", "--package", "cloche-warden", "--target", TARGET),
            *("--features", "mutant-no-lifeline", "--target-dir", str(target)),
        ],
        cwd=ROOT,
        env={**os.environ, **cargo.environment(found), "RUSTFLAGS": "-Ctarget-feature=+crt-static"},
        check=True,
    )
    copy = Path("/var/tmp", f"cloche-warden-mutant.{os.getpid()}")
    shutil.copy(target / TARGET / "debug" / "cloche-warden", copy)
    yield str(copy)
    copy.unlink()


class Victim(NamedTuple):
    """A domain whose supervisor is a process of its own. ``fugitives`` are all processes but the two wardens."""

    supervisor: int
    outer: int
    init: int
    fugitives: list[int]
    report: socket.socket


@contextmanager
def victim(role: Role, binary: str) -> Iterator[Victim]:
    """Provide a running domain full of processes that try to get away; whatever is left at the end is killed.

    The three processes that can be killed, and the fugitives, are given as pidfds.
    """
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        _supervise(role, binary, theirs)
    theirs.close()
    pids = [child]
    pidfds = [os.pidfd_open(child)]
    set_subreaper(True)
    try:
        ours.settimeout(PATIENCE_S)
        outer = int.from_bytes(ours.recv(4), "little")
        assert outer, "the supervisor could not start its domain"
        processes = descendants(outer)
        pids += [one.pid for one in processes]
        pidfds += [os.pidfd_open(one.pid) for one in processes]
        # The outer process has one child, PID 1 of the domain; everybody else is below that one.
        assert processes[1].parent == outer
        assert len(processes) >= 2 + ANNOUNCED
        yield Victim(pidfds[0], pidfds[1], pidfds[2], pidfds[3:], ours)
    finally:
        for pidfd in pidfds:
            kill(pidfd)
        left = wait_dead(pidfds, PATIENCE_S)
        for pidfd in pidfds:
            os.close(pidfd)
        # What has lost its parent is this process's to reap.
        for pid in pids[:3]:
            reap(pid)
        set_subreaper(False)
        ours.close()
        assert not left


def _supervise(role: Role, binary: str, report: socket.socket) -> None:
    """Be the supervisor: start the domain, tell its outer process's id, then tell when the domain has gone."""
    try:
        role.become()
        warden = Warden.start(binary)
        assert next_events(warden) == [Ready()]
        reader, writer = os.pipe()
        warden.send_spawn(shell(FUGITIVES, fds=(3,)), [writer])
        assert isinstance(next_events(warden)[0], Spawned)
        for _ in range(ANNOUNCED):
            read_line(reader)
        report.sendall(warden.pid.to_bytes(4, "little"))
        try:
            while True:
                warden.receive(wait=True)
        except LaunchError:
            report.sendall(b"gone")
        signal.pause()
    finally:
        os._exit(1)


def kill(pidfd: int) -> None:
    """Kill a process that may be dead already."""
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return


def set_subreaper(wanted: bool) -> None:
    """Make this process the parent of orphans below it, or stop being that."""
    pr_set_child_subreaper = 36
    assert ctypes.CDLL(None).prctl(pr_set_child_subreaper, int(wanted), 0, 0, 0) == 0


def reap(pid: int) -> None:
    """Reap a dead process, if its parent has not done so."""
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        return


def test_nothing_outlives_the_supervisor(role: Role) -> None:
    """SIGKILL of the supervisor ends the wardens and every process of the domain."""
    with victim(role, role.warden) as domain:
        kill(domain.supervisor)
        assert wait_dead([domain.outer, domain.init, *domain.fugitives], PATIENCE_S) == []


def test_nothing_outlives_the_outer_process(role: Role) -> None:
    """SIGKILL of the outer process ends PID 1 and every process of the domain, and the supervisor hears of it."""
    with victim(role, role.warden) as domain:
        kill(domain.outer)
        assert wait_dead([domain.init, *domain.fugitives], PATIENCE_S) == []
        assert domain.report.recv(4) == b"gone"


def test_nothing_outlives_pid_1(role: Role) -> None:
    """SIGKILL of PID 1 ends the outer process and every process of the domain, and the supervisor hears of it."""
    with victim(role, role.warden) as domain:
        kill(domain.init)
        assert wait_dead([domain.outer, *domain.fugitives], PATIENCE_S) == []
        assert domain.report.recv(4) == b"gone"


def test_nothing_outlives_the_outer_process_when_pid_1_is_stopped(role: Role) -> None:
    """A PID 1 that was stopped, and so polls nothing, dies with the outer process all the same."""
    with victim(role, role.warden) as domain:
        signal.pidfd_send_signal(domain.init, signal.SIGSTOP)
        kill(domain.outer)
        assert wait_dead([domain.init, *domain.fugitives], PATIENCE_S) == []


def test_nothing_outlives_all_of_them_at_once(role: Role) -> None:
    """SIGKILL of supervisor and outer process together ends every process of the domain."""
    with victim(role, role.warden) as domain:
        kill(domain.supervisor)
        kill(domain.outer)
        assert wait_dead([domain.init, *domain.fugitives], PATIENCE_S) == []


@pytest.mark.parametrize("killed", ["supervisor", "outer"])
def test_without_the_lifeline_processes_stay(role: Role, mutant: str, killed: str) -> None:
    """The same attacks leave the processes of the domain alive when the warden has no lifelines."""
    with victim(role, mutant) as domain:
        pidfd = domain.supervisor if killed == "supervisor" else domain.outer
        kill(pidfd)
        assert wait_dead([pidfd], PATIENCE_S) == []
        # Shells that only started others may end meanwhile.
        alive = wait_dead([domain.init, *domain.fugitives], GONE_WITHIN_S)
        assert domain.init in alive
        assert len(alive) >= 1 + ANNOUNCED


def test_processes_of_a_domain_cannot_reach_pid_1(role: Role) -> None:
    """Inside the domain nobody can kill, stop, trace or look into PID 1, and it goes on working."""

    @role.run
    def _() -> None:
        from support.wardens import domain, output

        script = """
            for signo in KILL STOP TERM SEGV ABRT CHLD; do kill -$signo 1 2>/dev/null; done
            for file in environ mem maps root/etc/passwd fd/3; do cat /proc/1/$file >/dev/null 2>&1 && echo $file; done
            cat /proc/1/comm"""
        with domain(role.warden) as warden:
            assert output(warden, script) == "cloche-warden/1\nstatus: 0"
            assert output(warden, "echo on") == "on\nstatus: 0"
