"""Fixtures for every ring; what they are made of is in ``tests/support``."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from support import leaks
from support.users import NEIGHBOUR, OrdinaryUser, ordinary_user

if TYPE_CHECKING:
    import pwd
    from collections.abc import Callable, Iterator
    from subprocess import CompletedProcess

TESTS = Path(__file__).parent
#: Rings that start machines: their folder is their marker, and nothing may outlive them.
MACHINE_RINGS = ("domain", "security")
#: What the design allows a domain's processes after their end (a second), and what a busy machine adds.
END_TIMEOUT_S = 10.0

# No deadline: a machine that is busy with something else must not fail a test.
settings.register_profile("cloche", deadline=None, print_blob=True)
settings.register_profile("ci", settings.get_profile("cloche"), derandomize=True)
settings.register_profile(
    "fuzz", settings.get_profile("cloche"), max_examples=int(os.environ.get("FUZZ_EXAMPLES") or 20000)
)
settings.load_profile("ci" if os.environ.get("CI") else "cloche")


def pytest_configure() -> None:
    """Let programs under test begin with the usual signals: a session in the background or below nohup ignores some."""
    for signo in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(signo) is signal.SIG_IGN:
            signal.signal(signo, signal.SIG_DFL)
    os.environ[leaks.SESSION] = str(os.getpid())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of a ring by its folder."""
    for item in items:
        ring = item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""
        if ring in MACHINE_RINGS:
            item.add_marker(ring)


@pytest.fixture(scope="session", autouse=True)
def no_leaked_processes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail when a ring that starts machines leaves one of their processes behind."""
    if not any(item.get_closest_marker(ring) for item in request.session.items for ring in MACHINE_RINGS):
        yield
        return
    before = leaks.processes()
    yield
    left = leaks.wait_for_end(leaks.leaked(before, leaks.processes(), os.getpid()), END_TIMEOUT_S)
    if left:
        pytest.fail("processes were left behind:\n" + "\n".join(map(str, left)), pytrace=False)


@pytest.fixture(scope="session")
def project() -> Path:
    """Return the checkout's directory."""
    return TESTS.parent


@pytest.fixture(scope="session")
def ordinary() -> Iterator[OrdinaryUser]:
    """Provide somebody without rights, with home, kernels and checkout: the caller, or ``cloche-test`` for root."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    with ordinary_user(Path(cache, "cloche", "kernels")) as user:
        yield user


@pytest.fixture(scope="session")
def neighbour() -> Iterator[OrdinaryUser]:
    """Provide a second one, who has nothing to do with the first. Only root can."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    with ordinary_user(Path(cache, "cloche", "kernels"), NEIGHBOUR) as user:
        yield user


@pytest.fixture(scope="session")
def unprivileged_user(ordinary: OrdinaryUser) -> pwd.struct_passwd:
    """Return the line of passwd of the ordinary user."""
    return ordinary.entry


@pytest.fixture(scope="session")
def run_as_user(ordinary: OrdinaryUser) -> Callable[..., CompletedProcess[bytes]]:
    """Return ``OrdinaryUser.run``: runs a program as the ordinary user and captures its output."""
    return ordinary.run
