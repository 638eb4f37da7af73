"""Templates in caches of their own, and what is done to them."""

from __future__ import annotations

import ctypes
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cloche.domain.domain import Domain
from cloche.host import xdg
from cloche.host.reactor import Reactor
from support.runs import Runner

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    import pytest

    from cloche.model.plan import LaunchPlan
    from support.users import OrdinaryUser

_PR_SET_CHILD_SUBREAPER = 36
_PATIENCE_S = 120.0


class OwnCache(Runner):
    """``cloche`` of one user with a cache that has the kernels, and so no template at first.

    Attributes:
        templates: Where its templates are.
    """

    def __init__(self, user: OrdinaryUser, base: Path) -> None:
        super().__init__(user)
        self.base = base
        cache = base / "cloche"
        cache.mkdir(mode=0o700)
        (cache / "kernels").symlink_to(user.home / ".cache" / "cloche" / "kernels")
        os.lchown(cache / "kernels", user.entry.pw_uid, user.entry.pw_gid)
        os.chown(cache, user.entry.pw_uid, user.entry.pw_gid)
        self.templates = cache / "templates"

    def __call__(self, *words: str | bytes, **more: object) -> subprocess.CompletedProcess[bytes]:
        """See ``Runner``."""
        env = {"XDG_CACHE_HOME": str(self.base)}
        return super().__call__(*words, env=env, **more)  # type: ignore[arg-type]

    def build(self) -> Path:
        """Make a template and return its directory."""
        done = self("template", "build")
        assert done.returncode == 0, done.stderr
        return self.templates / done.stdout.decode().strip()

    def begins(self) -> str:
        """Return how the next run would begin, in the words of ``--dry-run``."""
        done = self("run", "--dry-run", "true")
        assert done.returncode == 0, done.stderr
        lines = done.stdout.decode().splitlines()
        return next(line for line in lines if line.startswith("start ")).removeprefix("start").strip()


@contextmanager
def own_cache(user: OrdinaryUser, base: Path) -> Iterator[OwnCache]:
    """Provide cloche with a cache of its own, which goes afterwards."""
    made = OwnCache(user, base)
    try:
        yield made
    finally:
        shutil.rmtree(base / "cloche")


@contextmanager
def orphans() -> Iterator[None]:
    """Be the parent of what programs leave behind, and wait at the end until all of it has ended."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    try:
        yield
        while True:
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                break
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def share_kernels(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go on with a cache of this test's own, which has the caller's kernels."""
    kernels = Path(xdg.cache_dir(), "kernels")
    (base / "cloche").mkdir(mode=0o700)
    (base / "cloche" / "kernels").symlink_to(kernels)
    monkeypatch.setenv("XDG_CACHE_HOME", str(base))


def run_plan(plan: LaunchPlan) -> bytes:
    """Carry out a plan in this process and return what its program says."""
    said = bytearray()
    over: list[object] = []

    with Reactor() as reactor:
        domain = Domain(reactor, plan)

        def opened() -> None:
            job = domain.execute(plan.command, stdout=said.extend, stderr=2)
            job.on_done = over.append

        domain.on_open = opened
        domain.on_end = over.append
        try:
            domain.start()
            reactor.run_until(lambda: bool(over), timeout=_PATIENCE_S)
        finally:
            domain.close()
    assert over
    assert not isinstance(over[0], Exception), over
    return bytes(said)
