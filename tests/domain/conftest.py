"""Running cloche as its users do, for the tests with real machines."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cloche.kernel.packages import PackageSource, unpack_package
from cloche.kernel.tools import run_tool
from support.hosts import ChangedHost
from support.pools import Isolated, Pool
from support.runs import Runner
from support.users import ROOT, OrdinaryUser

if TYPE_CHECKING:
    from collections.abc import Iterator


def _make_templates(runner: Runner) -> None:
    """Make those that runs would leave somebody to make in the background, who might outlive the session."""
    for words in ((), ("--for-profiles",), ("--drives", "1"), ("--drives", "2")):
        made = runner("template", "build", *words)
        assert made.returncode == 0, made.stderr


@pytest.fixture(scope="session")
def cloche(ordinary: OrdinaryUser) -> Runner:
    """Return cloche as an ordinary user runs it, with a template, after the run at which notices are given."""
    runner = Runner(ordinary)
    _make_templates(runner)
    first = runner("true")
    assert first.returncode == 0, first.stderr
    return runner


@pytest.fixture(scope="session")
def cloche_as_caller() -> Runner:
    """Return cloche as whoever runs the tests does: root, where pytest runs as root. It has a template."""
    entry = pwd.getpwuid(os.getuid())
    runner = Runner(OrdinaryUser(entry, Path(os.environ.get("HOME") or entry.pw_dir), ROOT))
    _make_templates(runner)
    return runner


@pytest.fixture
def folder(ordinary: OrdinaryUser) -> Iterator[Path]:
    """Provide an empty directory of the ordinary user's."""
    import shutil
    import tempfile

    path = Path(tempfile.mkdtemp(dir=ordinary.home, prefix="folder-"))
    if ordinary.entry.pw_uid != os.geteuid():
        os.chown(path, ordinary.entry.pw_uid, ordinary.entry.pw_gid)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def host(cloche: Runner, folder: Path) -> ChangedHost:
    """Return cloche on a host like this one, to be changed; every run is held to leave nothing."""
    runtime = folder / "runtime"
    runtime.mkdir(mode=0o700)
    os.chown(runtime, cloche.user.entry.pw_uid, cloche.user.entry.pw_gid)
    return ChangedHost(cloche.user, runtime)


@pytest.fixture(scope="session")
def qemu_7_2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide the files of Debian 12's own QEMU, fetched and not installed."""
    directory = tmp_path_factory.mktemp("qemu")
    source = PackageSource(str(directory))
    for name in ("qemu-system-x86", "qemu-system-common", "qemu-system-data"):
        source.find(name)
        lines = run_tool(["apt-cache", *source._options, "madison", name]).splitlines()
        versions = [line.split("|")[1].strip() for line in lines]
        version = next(word for word in versions if word.startswith("1:7.2") and "bpo" not in word)
        unpack_package(source.download(f"{name}={version}"), str(directory / "tree"))
    # Reachable for whoever runs it.
    for path in (directory, *directory.parents):
        if path.owner() == Path("/proc/self").owner() and path != Path("/tmp"):
            path.chmod(path.stat().st_mode | 0o055)
    return directory / "tree" / "usr"


@pytest.fixture(params=["ordinary", "caller"])
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    """Provide the pool of both kinds of users."""
    runner: Runner = request.getfixturevalue("cloche" if request.param == "ordinary" else "cloche_as_caller")
    user = runner.user
    home = Path(tempfile.mkdtemp(dir=user.home, prefix="pool-"))
    for part in ("", "xdg", "xdg/run", "xdg/config", "xdg/state"):
        (home / part).mkdir(mode=0o700, exist_ok=True)
        if user.entry.pw_uid != os.geteuid():
            os.chown(home / part, user.entry.pw_uid, user.entry.pw_gid)
    made = Pool(Runner(Isolated(user.entry, home, user.project)))
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(home, ignore_errors=True)
