"""No program starts in a machine one of whose processes has fewer filters of system calls than its policy asks for."""

from __future__ import annotations

import os
import pwd
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.users import ROOT, OrdinaryUser
from support.wardens import ROLES

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Starts a machine whose jails were weakened behind the plan's back, and says so when its guest is set up.
SCRIPT = Path(__file__).parents[1].joinpath("domain", "weakened.py").read_text()


@pytest.fixture(params=ROLES)
def caller(request: pytest.FixtureRequest, ordinary: OrdinaryUser) -> OrdinaryUser:
    """Provide root and an ordinary user, one after the other."""
    if request.param == "ordinary":
        return ordinary
    return OrdinaryUser(pwd.getpwuid(0), Path(os.environ.get("HOME") or "/root"), ROOT)


@pytest.fixture
def share(caller: OrdinaryUser) -> Iterator[str]:
    """Provide an empty directory of the caller's."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="cloche-test-") as path:
        os.chown(path, caller.entry.pw_uid, caller.entry.pw_gid)
        yield path


#: What is taken away, of which process, and how many filters are left of how many.
MISSING = {
    "QEMU's own": ("vmm:sandbox", "vmm", "2 of the 3"),
    "QEMU's, both": ("vmm:filter vmm:sandbox", "vmm", "1 of the 3"),
    "from outside": ("disk-home:filter", "disk-home", "2 of the 3"),
    "from inside": ("bare:{hostile}", "fs-system", "2 of the 3"),
}


def start(caller: OrdinaryUser, share: str, *words: str) -> tuple[str, str]:
    """Start a machine, and end it when it is set up; return its name if it came so far, and what it said."""
    argv = ["/usr/bin/python3", "-IS", "-c", SCRIPT, str(caller.project / "src"), share, *words]
    process = caller.popen(argv, stdin=subprocess.PIPE)
    assert process.stdout is not None
    name = process.stdout.readline().decode().strip()
    said = process.communicate()[1].decode()
    assert process.returncode == (0 if name else 1), said
    return name, said


@pytest.mark.parametrize("case", MISSING)
def test_a_missing_filter_is_the_end(caller: OrdinaryUser, share: str, hostile: Path, case: str) -> None:
    """The domain ends before its guest is told anything; a supervisor that did not look would go on."""
    words, process, count = MISSING[case]
    weakened = words.format(hostile=hostile).split()
    name, said = start(caller, share, *weakened)
    assert name == ""
    assert f"cannot start {process}: it has {count} filters" in said
    assert start(caller, share, *weakened, "unchecked")[0]


def test_filters_that_were_given_up_are_not_asked_for(
    caller: OrdinaryUser, share: str, hostile: Path
) -> None:
    """Who says --insecure-no-jail=seccomp gets a machine all the same."""
    assert start(caller, share, "insecure:seccomp", f"bare:{hostile}")[0]
