"""The ordinary user of the tests is one: no rights, a home, a checkout that works."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from support.users import OrdinaryUser


def test_user_has_no_rights(ordinary: OrdinaryUser) -> None:
    """The user is not root, in no group of root's, and cannot read what only root may."""
    done = ordinary.run(["sh", "-c", "id -u; cat /etc/shadow"])
    assert int(done.stdout) == ordinary.entry.pw_uid != 0
    assert b"Permission denied" in done.stderr
    if os.geteuid() == 0:
        assert ordinary.run(["id", "-G"]).stdout.split() == [str(ordinary.entry.pw_gid).encode()]


def test_user_can_use_the_home(ordinary: OrdinaryUser) -> None:
    """HOME is the user's own directory, the working directory, and writable."""
    done = ordinary.run(["sh", "-c", 'echo x > probe && rm probe && echo "$HOME" && pwd'], check=True)
    assert done.stdout.decode().split() == [str(ordinary.home)] * 2


def test_user_can_run_cloche(ordinary: OrdinaryUser) -> None:
    """The user can start cloche from the checkout by its name."""
    done = ordinary.run(["cloche", "--version"])
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"cloche ")


def test_input_reaches_the_program(ordinary: OrdinaryUser) -> None:
    """What is given as input arrives, and the status and both outputs come back."""
    done = ordinary.run(["sh", "-c", "cat; echo err >&2; exit 5"], input=b"\0bytes")
    assert (done.returncode, done.stdout, done.stderr) == (5, b"\0bytes", b"err\n")
