"""A run from the pool in its shell's job control, and saved: it is a domain as any other."""

from __future__ import annotations

import os
import select
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cloche.host.groups import UNIFIED, mounts
from support.domains import domain_processes
from support.pools import FROM_POOL
from support.pty import TerminalProgram

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.pools import Pool


def test_control_z_and_fg(pool: Pool) -> None:
    """A run from the pool is a job of its shell's: Ctrl-Z stops it, the terminal is the shell's, and fg goes on."""
    pool.set(1)
    script = """'echo rea""dy; read x; echo got $x'"""
    prompt = b"$ " if pool.cloche.user.entry.pw_uid else b"# "
    with TerminalProgram(pool.cloche.user, ["bash", "--norc", "-i"]) as on:
        on.expect(prompt)
        on.type(f"{pool.cloche.program} -v sh -c {script}\r".encode())
        on.expect(b"of the pool")
        on.expect(b"ready\r\n")
        on.type(b"\x1a")
        on.expect(b"Stopped")
        on.expect(prompt)
        on.type(b"stty | grep -c -- -echo; echo $((40 + 2)) in the shell\r")
        on.expect(b"0\r\n42 in the shell")
        on.expect(prompt)
        on.type(b"fg\r")
        on.expect(b"sh -c")
        on.type(b"word\r")
        on.expect(b"got word")
        on.expect(prompt)
        on.type(b"exit\r")
        assert on.wait() == 0


#: Counts in a file of a share, and in memory.
_COUNT = "n=0; while :; do n=$((n+1)); echo $n; echo $n >> /mnt/count; sleep 0.1; done"


def test_a_run_from_the_pool_is_saved_and_forked(pool: Pool) -> None:
    """Its program goes on in both with what was shared for it; a share comes and goes in the copies, too."""
    cloche = pool.cloche
    names = ("taken", "again", "fork")
    shared = cloche.user.home / "shared"
    assert cloche.user.run(["mkdir", str(shared)]).returncode == 0
    pool.set(1, "--share-later")
    words = ("--name", "taken", "--share", f"{shared}:rw:at=/mnt", "--", "sh", "-c", _COUNT)
    with cloche.popen("run", "-v", *words) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == b"1\n"
            assert process.stderr.readline().endswith(FROM_POOL)
            done = cloche("snapshot", "save", "taken", "pooled")
            assert done.returncode == 0, done.stderr
            # It goes on by itself, each number once.
            assert [int(process.stdout.readline()) for _ in range(30)] == list(range(2, 32))
            done = cloche("snapshot", "restore", "pooled", "--name", "again")
            assert done.stdout == b"again\n", done.stderr
            done = cloche("fork", "taken", "--name", "fork")
            assert done.stdout == b"fork\n", done.stderr
            for name in ("again", "fork"):
                with cloche.popen("logs", "-f", name) as following:
                    assert following.stdout is not None
                    numbers = [int(following.stdout.readline()) for _ in range(5)]
                    following.kill()
                assert numbers == list(range(numbers[0], numbers[0] + 5))
                added = cloche("share", "add", name, f"{shared}:at=/srv")
                assert added.returncode == 0, added.stderr
                assert cloche("exec", name, "head", "-1", "/srv/count").stdout == b"1\n"
        finally:
            for name in names:
                cloche("stop", "-t", "0", name)
                cloche("rm", name)
            cloche("snapshot", "delete", "pooled")
            process.kill()


@pytest.fixture
def group() -> Iterator[Path]:
    """Provide a control group of this test's."""
    places = mounts()
    place = places.get(UNIFIED) or next(iter(places.values()))
    made = Path(place) / f"cloche-test-{os.getpid()}"
    made.mkdir()
    yield made
    made.rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a control group everywhere")
@pytest.mark.parametrize("pool", ["caller"], indirect=True)
def test_a_run_counts_in_its_callers_control_group(pool: Pool, group: Path) -> None:
    """Every process of the machine is in the group of whoever has taken it, and in its maker's before.

    The child that makes the next machine is nobody's, and stays where it was made.
    """
    pool.set(1)
    (ident,) = pool.waiting()
    supervisor = pool.supervisor(ident)

    def processes() -> list[int]:
        own = Path(f"/proc/{supervisor}/comm").read_text()
        others = domain_processes(supervisor)
        return [supervisor, *(pid for pid in others if Path(f"/proc/{pid}/comm").read_text() != own)]

    def members() -> list[bool]:
        return [f"/{group.name}\n" in Path(f"/proc/{pid}/cgroup").read_text() for pid in processes()]

    assert not any(members())
    script = f'echo $$ > {group}/cgroup.procs; exec "$0" -v sh -c "echo up; read x"'
    words = ["sh", "-c", script, pool.cloche.program]
    with pool.cloche.user.popen(words, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"up\n"
        seen = members()
        assert len(seen) > 3
        assert all(seen)
        all_ends = [os.pidfd_open(pid) for pid in processes()]
        _, said = process.communicate(b"\n")
    assert FROM_POOL in said
    # The group can be removed when nobody is in it any more.
    for end in all_ends:
        assert select.select([end], [], [], 90)[0]
        os.close(end)
