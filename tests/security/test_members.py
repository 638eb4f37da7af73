"""Machines that wait in the pool are strangers to each other, twice over: by the restore, and by the taking.

Each of the two gives the guest's kernel fresh randomness; the mutants leave out the one, the other, or both.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.runs import Runner
from support.users import OrdinaryUser

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

WEAK = Path(__file__).with_name("weak_member.py").read_text()
#: What a program draws first.
DRAWS = ("cat", "/proc/sys/kernel/random/uuid")
#: A kernel takes randomness from the CPU by itself at 6.8, 10, 15, 23, 34 ... seconds of its life. What goes on from a
#: template that was saved right after such a moment is made and taken before the next one.
_AGES_S = (16.5, 25.0)


class Isolated(OrdinaryUser):
    """A user whose templates and whose pool are this test's alone."""

    __slots__ = ()

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return what a login gives this user, with directories of the test's."""
        own = {
            f"XDG_{part}": str(self.home)
            for part in ("RUNTIME_DIR", "CONFIG_HOME", "STATE_HOME", "CACHE_HOME")
        }
        return super().environment({**own, **(more or {})})


@contextmanager
def members(user: OrdinaryUser, age_s: float) -> Iterator[Runner]:
    """Provide cloche with a pool of its own, whose machines go on from a template of this age."""
    with tempfile.TemporaryDirectory(dir=user.home, prefix="members-") as home:
        cache = Path(home, "cloche")
        cache.mkdir(mode=0o700)
        (cache / "kernels").symlink_to(user.home / ".cache" / "cloche" / "kernels")
        for path in (Path(home), cache):
            os.chown(path, user.entry.pw_uid, user.entry.pw_gid)
        made = Runner(Isolated(user.entry, Path(home), user.project))
        weakened(made, "none", age_s, "template", "build")
        try:
            yield made
        finally:
            made("pool", "set", "--keep", "0")
            made("pool", "clear", "--forget")


def weakened(runner: Runner, weak: str, age_s: float, *words: str) -> None:
    """Run cloche with this weakness."""
    source = str(runner.user.project / "src")
    argv = ["/usr/bin/python3", "-IS", "-c", WEAK, source, weak, str(age_s), *words]
    done = runner.user.run(argv)
    assert done.returncode == 0, done.stderr


def draw_twice(runner: Runner, weak: str) -> tuple[bytes, bytes]:
    """Return what the first program says in each of two machines of the pool with this weakness."""
    weakened(runner, weak, 0, "pool", "set", "--keep", "2")
    # Nobody makes others meanwhile, which would be whole.
    assert runner.user.run(["touch", str(runner.user.home / "cloche-pool" / "failed")]).returncode == 0
    said = []
    for _ in range(2):
        done = runner("run", "-v", "--", *DRAWS)
        assert done.stderr.endswith(b"of the pool\n"), done.stderr
        said.append(done.stdout)
    return said[0], said[1]


def test_either_of_both_keeps_members_apart(ordinary: OrdinaryUser) -> None:
    """Machines draw the same with neither, and other numbers with either of the two."""
    found = []
    for age_s in _AGES_S:
        with members(ordinary, age_s) as runner:
            for weak in ("none", "making", "taking"):
                one, other = draw_twice(runner, weak)
                assert one != other, weak
            # The mutant: nothing else keeps them apart.
            one, other = draw_twice(runner, "both")
            found.append((one, other))
            if one == other:
                return
    pytest.fail(f"machines of the pool differ without fresh randomness: {found}")
