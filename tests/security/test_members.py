"""Machines that wait in the pool are strangers to each other, twice over: by the restore, and by the taking.

Each of the two gives the guest's kernel fresh randomness; the mutants leave out the one, the other, or both.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.runs import Runner
from support.users import OrdinaryUser

if TYPE_CHECKING:
    from collections.abc import Iterator

WEAK = Path(__file__).with_name("weak_member.py").read_text()
#: What a program draws first.
DRAWS = ("cat", "/proc/sys/kernel/random/uuid")
#: A kernel takes randomness from the CPU by itself at 1, 2, 3, 4.5, 6.8 ... seconds of its life, and machines reach
#: that at different moments of their warm-up when the host is busy: one pair of so many must have met none.
_PAIRS = 6


class Isolated(OrdinaryUser):
    """A user whose pool is this test's alone."""

    __slots__ = ()

    def environment(self, more: dict[str, str] | None = None) -> dict[str, str]:  # type: ignore[override]
        """Return what a login gives this user, with a pool of the test's."""
        own = {
            name: str(self.home / "xdg") for name in ("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_STATE_HOME")
        }
        own["XDG_CACHE_HOME"] = str(self.home.parent / ".cache")
        return super().environment({**own, **(more or {})})


@pytest.fixture
def runner(ordinary: OrdinaryUser) -> Iterator[Runner]:
    """Provide cloche with a pool of its own."""
    with tempfile.TemporaryDirectory(dir=ordinary.home, prefix="members-") as home:
        for path in (Path(home), Path(home, "xdg")):
            path.mkdir(mode=0o700, exist_ok=True)
            os.chown(path, ordinary.entry.pw_uid, ordinary.entry.pw_gid)
        made = Runner(Isolated(ordinary.entry, Path(home), ordinary.project))
        built = made("template", "build")
        assert built.returncode == 0, built.stderr
        try:
            yield made
        finally:
            made("pool", "set", "--keep", "0")
            made("pool", "clear", "--forget")


def draw_twice(runner: Runner, weak: str) -> tuple[bytes, bytes]:
    """Return what the first program says in each of two machines of the pool with this weakness."""
    words = ["/usr/bin/python3", "-IS", "-c", WEAK, str(runner.user.project / "src"), weak]
    made = runner.user.run([*words, "pool", "set", "--keep", "2"])
    assert made.returncode == 0, made.stderr
    # Nobody makes others meanwhile, which would be whole.
    assert (
        runner.user.run(["touch", str(runner.user.home / "xdg" / "cloche-pool" / "failed")]).returncode == 0
    )
    said = []
    for _ in range(2):
        done = runner("run", "-v", "--", *DRAWS)
        assert done.stderr.endswith(b"of the pool\n"), done.stderr
        said.append(done.stdout)
    return said[0], said[1]


@pytest.mark.parametrize("weak", ["none", "making", "taking"])
def test_either_of_both_keeps_members_apart(runner: Runner, weak: str) -> None:
    """Two machines that were made and taken alike draw other numbers, also with one of the two left out."""
    one, other = draw_twice(runner, weak)
    assert one != other


def test_without_both_members_draw_the_same(runner: Runner) -> None:
    """The mutant: nothing else keeps them apart."""
    seen = [draw_twice(runner, "both") for _ in range(_PAIRS)]
    drawn = [said for pair in seen for said in pair]
    assert len(set(drawn)) < len(drawn), drawn
