"""The pool: machines that wait, warm; a run takes one, is as any other run in it, and nobody else ever has it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.domains import domain_processes
from support.pools import FROM_POOL
from support.pty import TerminalProgram

if TYPE_CHECKING:
    from collections.abc import Sequence

    from support.pools import Pool
    from support.runs import Runner


def both(pool: Pool, *words: str | bytes, input: bytes | None = None) -> Sequence[tuple[int, bytes, bytes]]:
    """Return what a run says of itself in a machine of the pool, and in one of its own."""
    pool.set(1)
    taken = pool.cloche("run", "-v", *words, input=input)
    own = pool.cloche("run", "--no-pool", *words, input=input)
    assert taken.stderr.endswith(FROM_POOL), taken.stderr
    said = b"\n".join(line for line in taken.stderr.split(b"\n")[:-1] if not line.endswith(b"of the pool"))
    return (taken.returncode, taken.stdout, said), (own.returncode, own.stdout, own.stderr)


#: Prints what a program inherits.
_INHERITED = (
    "env | sort; pwd; id; umask; ulimit -a; cat; echo e >&2; nice; grep Sig /proc/self/status; exit 7"
)


def test_a_run_from_the_pool_is_a_run(pool: Pool) -> None:
    """Words, environment, directory, user, streams and status are what they are in a machine of its own."""
    words = ("-e", "A=b c", "--pids", "99", "-w", "/usr", "--no-tty", "--", "sh", "-c", _INHERITED)
    pool.set(1)
    taken = pool.cloche("run", "-v", *words, input=b"x" * 300000)
    own = pool.cloche("run", "--no-pool", *words, input=b"x" * 300000)
    assert FROM_POOL in taken.stderr
    assert (taken.returncode, taken.stdout) == (7, own.stdout)
    assert own.returncode == 7
    assert b"e\n" in taken.stderr
    for more, status, said in (
        (("--privileged", "--", "id", "-u"), 0, b""),
        (("--", "no-such-program"), 127, b"was not found in the guest"),
        (("--", "/usr"), 126, b"is a directory"),
        (("--timeout", "0.5", "--", "sleep", "60"), 124, b"its time limit of 0.5 seconds"),
        (("--", "sh", "-c", "kill -9 $$"), 137, b""),
    ):
        pool.set(1)
        done = pool.cloche("run", "-v", *more)
        assert done.returncode == status, (more, done)
        assert said in done.stderr
        assert (FROM_POOL in done.stderr) is True, (more, done.stderr)


def test_two_runs_never_get_the_same_machine(pool: Pool) -> None:
    """Eight at once for three machines: three take one each, the others start their own; all are strangers."""
    pool.set(3)
    assert len(pool.waiting()) == 3
    script = "cat /etc/machine-id /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | od -An -tx1"
    runs = [pool.cloche.popen("run", "-v", "--", "sh", "-c", script) for _ in range(8)]
    said = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0] * 8, said
    for line in range(3):
        assert len({out.split(b"\n")[line] for out, _ in said}) == 8, said
    assert sum(FROM_POOL in err for _, err in said) == 3
    assert pool.entries() == []


def filters(pid: int) -> int:
    """Return how many filters of system calls a process has."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("Seccomp_filters:")[2].split()[0])


def test_what_waits_is_hidden_idle_and_can_be_ended(pool: Pool) -> None:
    """`ps` shows it only with --all; it takes no CPU and its supervisor sleeps; `clear` ends it."""
    pool.set(1)
    (ident,) = pool.waiting()
    assert json.loads(pool.cloche("ps", "--json").stdout) == []
    assert ident.encode() in pool.cloche("ps", "--all").stdout
    assert b"no domain of yours is running" in pool.cloche("shell").stderr
    row = json.loads(pool.cloche("pool", "list", "--json").stdout)["machines"][0]
    assert row["memory_kib"] > 20000
    supervisor = pool.supervisor(ident)
    assert filters(supervisor) == filters(os.getpid()) + 1
    everybody = [supervisor, *domain_processes(supervisor)]

    def worked() -> list[str]:
        ticks = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13] for pid in everybody]
        switches = [
            line for line in Path(f"/proc/{supervisor}/status").read_text().splitlines() if "ctxt" in line
        ]
        return [*map(str, ticks), *switches]

    # It answers before it goes to sleep.
    while Path(f"/proc/{supervisor}/stat").read_text().rpartition(")")[2].split()[0] != "S":
        pass
    before = worked()
    # Something else that takes its time.
    assert pool.cloche("run", "--no-pool", "--", "sleep", "0.5").returncode == 0
    assert worked() == before
    for words, why in (
        ((), b"yes, 1 wait"),
        (("--cold",), b"--cold was given"),
        (("--hwrng",), b"cannot be added"),
        (("-m", "512M"), b"none waits"),
    ):
        plan = pool.cloche("run", "--dry-run", *words, "--", "true").stdout
        assert why in plan.split(b"\npool ")[1], plan
    ended = os.pidfd_open(supervisor)
    assert pool.cloche("pool", "clear").stdout == b"1 machine ended\n"
    assert _has_ended(ended)
    os.close(ended)
    assert pool.entries() == []


_STAGES = {
    "connected": "c = pool.connect(m)",
    "renamed": "c = pool.take(m)",
    "claimed": "c = pool.take(m); c.send(wire.encode_request(claiming.Claim.of(0, scheduling.current())))",
}
_TAKER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from cloche.host import pool, scheduling
from cloche.domain.control import claiming, wire
m = next(m for m in pool.members() if m.state == pool.READY)
%s
print("there", flush=True)
sys.stdin.read()
"""


def test_a_taker_that_is_killed_leaves_nothing(pool: Pool) -> None:
    """Killed before it has changed the name it has done nothing; killed after that, the machine ends."""
    pool.set(1)
    source = str(pool.cloche.user.project / "src")
    for stage, code in _STAGES.items():
        (ident,) = pool.waiting()
        supervisor = pool.supervisor(ident)
        words = ["/usr/bin/python3", "-IS", "-c", _TAKER % code, source]
        taker = pool.cloche.user.popen(words, stdin=subprocess.PIPE)
        assert taker.stdout is not None
        assert taker.stdout.readline() == b"there\n", taker.communicate()
        ended = os.pidfd_open(supervisor)
        taker.kill()
        taker.communicate()
        if stage == "connected":
            assert pool.waiting() == [ident]
        else:
            assert _has_ended(ended), stage
            assert pool.entries() == []
        os.close(ended)
        if stage == "renamed":
            pool.set(1)
            pool.set(1)
    # And while its program runs.
    run = pool.cloche.popen("run", "--", "sh", "-c", "echo on; sleep 600")
    assert run.stdout is not None
    assert run.stdout.readline() == b"on\n"
    (row,) = json.loads(pool.cloche("ps", "--json").stdout)
    ended = os.pidfd_open(pool.supervisor(row["domain"]))
    run.kill()
    run.communicate()
    assert _has_ended(ended)
    assert json.loads(pool.cloche("ps", "--json").stdout) == []
    os.close(ended)


def _has_ended(pidfd: int) -> bool:
    import select

    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(30000))


@pytest.mark.parametrize("part", ["supervisor", "warden", "vmm", "stopped"])
def test_a_broken_machine_costs_nobody_the_run(pool: Pool, part: str) -> None:
    """Whatever of it is killed or stands still, the run goes the ordinary way and nothing stays in the directory."""
    pool.set(1)
    (ident,) = pool.waiting()
    supervisor = pool.supervisor(ident)
    names = {pid: Path(f"/proc/{pid}/comm").read_text() for pid in domain_processes(supervisor)}
    vmm = next(pid for pid, name in names.items() if name.startswith("qemu"))
    warden = next(pid for pid, name in names.items() if name.startswith("cloche-warden"))
    victim = {"supervisor": supervisor, "warden": warden, "vmm": vmm, "stopped": vmm}[part]
    ended = os.pidfd_open(supervisor)
    dying = [os.pidfd_open(pid) for pid in {victim, vmm}]
    os.kill(victim, signal.SIGSTOP if part == "stopped" else signal.SIGKILL)
    for one in dying:
        # On a busy host one that was killed may be of use for a while.
        assert part == "stopped" or _has_ended(one)
        os.close(one)
    done = pool.cloche("run", "-v", "--", "echo", "all is well")
    assert (done.returncode, done.stdout) == (0, b"all is well\n"), done.stderr
    assert FROM_POOL not in done.stderr
    assert _has_ended(ended)
    os.close(ended)
    assert pool.waiting() == []
    assert pool.entries() == []


def test_shares_come_with_the_run(pool: Pool) -> None:
    """A directory is shared read-only and read-write; what was written is on the host when the run has ended."""
    folder = pool.cloche.user.home / "shared"
    pool.cloche.user.run(["mkdir", "-p", f"{folder}/ro", f"{folder}/rw"])
    (folder / "ro" / "file").write_text("from the host\n")
    script = f"cat {folder}/ro/file; touch {folder}/ro/no; echo written > {folder}/rw/file; pwd"
    words = ("--share", f"{folder}/ro", "--share", f"{folder}/rw:rw", "-w", f"{folder}/rw")
    pool.set(1, "--share-later")
    done = pool.cloche("run", "-v", *words, "--", "sh", "-c", script)
    assert FROM_POOL in done.stderr, done
    assert done.stdout == f"from the host\n{folder}/rw\n".encode()
    assert b"Read-only file system" in done.stderr
    assert (folder / "rw" / "file").read_text() == "written\n"
    assert (folder / "rw" / "file").stat().st_uid == pool.cloche.user.entry.pw_uid
    assert not (folder / "ro" / "no").exists()
    # Root's server of shares that can be written to is not given to a run that has none.
    pool.set(1, "--share-later")
    plain = pool.cloche("run", "-v", "--", "true")
    assert (FROM_POOL in plain.stderr) is (pool.cloche.user.entry.pw_uid != 0)


def test_a_terminal_is_the_programs(pool: Pool) -> None:
    """Keys, size, Ctrl-C and the mode afterwards; the program's name is known to others."""
    pool.set(1)
    script = (
        "trap 'echo caught; exit 3' INT; stty size; read word; echo got:$word; while :; do sleep 0.1; done"
    )
    words = [pool.cloche.program, "run", "--name", "shown", "--", "sh", "-c", script]
    with TerminalProgram(pool.cloche.user, words) as terminal:
        terminal.expect(b"30 100")
        (row,) = json.loads(pool.cloche("ps", "--json").stdout)
        assert (row["name"], row["program"][0], row["state"]) == ("shown", "sh", "running")
        assert pool.cloche("exec", "shown", "--", "true").returncode == 0
        terminal.type(b"hello\r")
        terminal.expect(b"got:hello")
        terminal.type(b"\x03")
        terminal.expect(b"caught")
        assert terminal.wait() == 3
    assert pool.cloche("run", "--no-pool", "--name", "shown", "--", "true").returncode == 0


#: Prints everything a program that ran before could have left, and nothing that any two machines differ in.
_LEFT = r"""
import os, stat
skip = ("/proc", "/sys", "/usr", "/opt", "/cloche", "/etc/alternatives")
for top, dirs, files in os.walk("/"):
    dirs[:] = sorted(d for d in dirs if os.path.join(top, d) not in skip)
    for name in ["", *sorted(files)]:
        path = os.path.join(top, name)
        try:
            s = os.lstat(path)
            print(path, oct(s.st_mode), s.st_uid, s.st_gid, s.st_size if stat.S_ISREG(s.st_mode) else "")
        except OSError as e:
            print(path, e.errno)
print(sorted(os.environ.items()))
print(open("/proc/mounts").read())
seen = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        if os.readlink(f"/proc/{pid}/exe"): seen.append(open(f"/proc/{pid}/comm").read())
    except OSError: pass
print(sorted(seen))
for top, dirs, files in os.walk("/proc/sys"):
    dirs[:] = sorted(d for d in dirs if d not in ("random",))
    for name in sorted(files):
        if name in ("dentry-state", "inode-nr", "inode-state", "file-nr", "ns_last_pid", "pty/nr"): continue
        try: print(top, name, open(os.path.join(top, name)).read())
        except (OSError, UnicodeDecodeError) as e: print(top, name, type(e).__name__)
for name in ("sysvipc/shm", "sysvipc/sem", "sysvipc/msg", "net/unix", "locks", "swaps", "keys"):
    try: print(name, open(f"/proc/{name}").read() if name != "net/unix" else len(open(f"/proc/{name}").readlines()))
    except OSError as e: print(name, e.errno)
for top, dirs, files in os.walk("/sys/fs/cgroup"): print(top, sorted(dirs))
"""
#: What a warm-up that may write would leave.
_DIRTY = (
    b"/bin/sh",
    b"-c",
    b"echo left > /tmp/left; echo left > /dev/shm/left; echo left > $HOME/.left; true",
)


def test_nothing_is_left_of_the_warm_up(pool: Pool) -> None:
    """Files, mounts, processes, environment, sysctl, IPC and control groups are those of a machine of its own."""
    # As root it sees all there is to be seen.
    (status, taken, said), (_, own, _) = both(pool, "--privileged", "--", "python3", "-c", _LEFT)
    assert status == 0, said
    assert taken.splitlines() == own.splitlines()


#: Says "pool set" with something changed, as a program of the user's.
_CHANGED = """
import sys
sys.path.insert(0, sys.argv[1])
import cloche.plan.pool as plan
%s
from cloche.cli.main import main
sys.exit(main(["pool", "set", "--keep", "1"]))
"""
_WRITES = f"plan.WARM_UP = ({_DIRTY!r},)"
_OPEN = "plan.build_close_steps = lambda: ()"


def _set_changed(pool: Pool, *changes: str) -> None:
    code = _CHANGED % "\n".join(changes)
    source = str(pool.cloche.user.project / "src")
    made = pool.cloche.user.run(["/usr/bin/python3", "-IS", "-c", code, source])
    assert made.returncode == 0, made.stderr
    pool.stop_refilling()


def test_what_a_warm_up_would_leave_is_seen(pool: Pool) -> None:
    """The twins: one that writes is kept from it; where nothing keeps it, the comparison above would find it."""
    look = ("run", "-v", "--privileged", "--", "python3", "-c", _LEFT)
    own = pool.cloche("run", "--no-pool", *look[2:]).stdout
    for changes, same in (((_WRITES,), True), ((_WRITES, _OPEN), False)):
        _set_changed(pool, *changes)
        done = pool.cloche(*look)
        assert FROM_POOL in done.stderr
        assert (done.stdout == own) is same
        assert (b"/tmp/left" in done.stdout and b".left" in done.stdout) is not same
        pool.cloche("pool", "clear", "--forget")


def _tell_time(pool: Pool) -> float:
    """Return how late the clock is of a machine that has waited for a while."""
    # It must not have missed this.
    assert pool.cloche("run", "--no-pool", "--", "sleep", "1.5").returncode == 0
    before = time.time()
    done = pool.cloche("run", "-v", "--", "date", "+%s.%N")
    assert FROM_POOL in done.stderr
    return before - float(done.stdout)


def test_the_clock_is_right_after_the_wait(pool: Pool) -> None:
    """A machine that has stood still knows what time it is when its program begins; its twin, told nothing, not."""
    pool.set(1)
    assert _tell_time(pool) <= 0
    pool.cloche("pool", "clear", "--forget")
    _set_changed(pool, "plan.build_fresh_steps = lambda: ()")
    assert _tell_time(pool) > 1


def test_what_is_out_of_date_is_thrown_away(pool: Pool) -> None:
    """A machine whose template was made anew is listed so; a run does not use it, and it ends."""
    pool.set(1)
    (ident,) = pool.waiting()
    supervisor = pool.supervisor(ident)
    plan = pool.cloche("run", "--dry-run", "--", "true").stdout.decode()
    template = next(line for line in plan.splitlines() if line.startswith("start")).rpartition(" ")[2]
    assert pool.cloche.user.run(["touch", f"{template}/info"]).returncode == 0
    (row,) = json.loads(pool.cloche("pool", "list", "--json").stdout)["machines"]
    assert (row["state"], row["why"]) == ("out of date", f"{template}/info has changed")
    ended = os.pidfd_open(supervisor)
    done = pool.cloche("run", "-v", "--", "echo", "well")
    assert (done.returncode, done.stdout) == (0, b"well\n")
    assert FROM_POOL not in done.stderr
    assert _has_ended(ended)
    os.close(ended)


def test_another_one_is_made_afterwards(pool: Pool) -> None:
    """By a process of its own, when the program has ended; signals and niceness reach that as ever."""
    pool.set(1)
    (first,) = pool.waiting()
    home = Path(pool.cloche.user.environment()["XDG_RUNTIME_DIR"]) / "cloche-pool"
    (home / "failed").unlink()
    script = "trap 'exit 9' TERM; echo on; while :; do sleep 0.1; done"
    run = pool.cloche.popen("run", "--", "sh", "-c", script)
    assert run.stdout is not None
    assert run.stdout.readline() == b"on\n"
    run.terminate()
    run.communicate()
    assert run.returncode == 9
    # Waits for whoever fills it just now, and finds nothing left to do, or does it.
    assert pool.cloche("pool", "fill").returncode == 0
    (second,) = pool.waiting()
    assert first != second
    pool.stop_refilling()
    nice = pool.cloche.user.run(["nice", "-n", "5", pool.cloche.program, "run", "-v", "--", "nice"])
    assert (nice.returncode, nice.stdout, FROM_POOL in nice.stderr) == (0, b"5\n", True)


def test_two_users_do_not_see_each_others(cloche: Runner, cloche_as_caller: Runner) -> None:
    """Even told where it is, an ordinary user cannot look into another's pool, and a run goes the ordinary way."""
    with tempfile.TemporaryDirectory() as home:
        env = {"XDG_RUNTIME_DIR": home, "XDG_CONFIG_HOME": home}
        assert cloche_as_caller("pool", "set", "--keep", "1", env=env).returncode == 0
        try:
            rows = json.loads(cloche("pool", "list", "--json", env={"XDG_RUNTIME_DIR": home}).stdout)
            assert rows["machines"] == []
            done = cloche("run", "-v", "--", "true", env={"XDG_RUNTIME_DIR": home})
            assert (done.returncode, FROM_POOL in done.stderr) == (0, False)
            # It is still there, for its owner.
            mine = cloche_as_caller("run", "-v", "--", "true", env=env)
            assert (mine.returncode, FROM_POOL in mine.stderr) == (0, True)
        finally:
            cloche_as_caller("pool", "clear", "--forget", env=env)
