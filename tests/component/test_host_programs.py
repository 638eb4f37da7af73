"""Looking a program up before a machine is started for it: only what is certain is refused."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from cloche.errors import CommandNotExecutableError, CommandNotFoundError
from cloche.host.programs import find_program
from cloche.plan.guest import build_command, shown_trees
from support.plans import ALICE, facts, request, share

if TYPE_CHECKING:
    from pathlib import Path

    from cloche.model.request import Share


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Provide the working directory, with a program in it."""
    here = tmp_path.resolve()
    monkeypatch.chdir(here)
    program = here / "prog"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return here


def check(
    name: bytes, *shares: Share, cwd: str = "/", path: bytes = b"/usr/bin:/bin", **options: Any
) -> bytes:
    """Look a program up for a run from a directory."""
    asked = request(name, shares=shares, **options)
    host = facts(cwd=cwd, environment={b"PATH": path})
    shown = shown_trees(asked)
    return find_program(build_command(asked, host, ALICE, shown), tuple(map(os.fsencode, shown)))


def test_programs_of_the_path() -> None:
    """A name that is in a directory of PATH is found in the first one, one that is nowhere is not found."""
    assert check(b"env", path=b"/usr/local/lib:/usr/bin:/bin") == b"/usr/bin/env"
    with pytest.raises(CommandNotFoundError, match="no-such-program was not found"):
        check(b"no-such-program")
    with pytest.raises(CommandNotFoundError, match=r"x\\n was not found"):
        check(b"x\n")


def test_a_path_the_host_cannot_judge() -> None:
    """With a directory in PATH that only the guest has, the guest has the last word."""
    assert check(b"no-such-program", env=((b"PATH", b"/only/in/the/guest:/usr/bin"),)) == b""
    assert check(b"env", env=((b"PATH", b"/only/in/the/guest:/usr/bin"),)) == b""


def test_an_empty_name() -> None:
    """A word without a letter is no program, whatever PATH is."""
    with pytest.raises(CommandNotFoundError, match="name is empty"):
        check(b"")


def test_programs_by_their_path(here: Path) -> None:
    """A path below a shown tree must exist and be executable; any other is the guest's business."""
    check(b"/usr/bin/env")
    check(b"/somewhere/else")
    with pytest.raises(CommandNotFoundError, match="/usr/bin/no-such"):
        check(b"/usr/bin/no-such")
    with pytest.raises(CommandNotExecutableError, match="is a directory"):
        check(b"/usr/bin")
    (here / "data").write_text("")
    with pytest.raises(CommandNotExecutableError, match="no execute permission"):
        check(os.fsencode(here / "data"), share(str(here)))
    check(os.fsencode(here / "prog"), share(str(here)))


def test_a_program_of_the_working_directory(here: Path) -> None:
    """A relative name works where the directory is shared, at whatever place, and else the remedy is named."""
    with pytest.raises(CommandNotFoundError) as caught:
        check(b"./prog", cwd=str(here))
    assert "--here" in str(caught.value.hint)
    check(b"./prog", share(str(here)), cwd=str(here))
    check(b"./prog", share(str(here), "/elsewhere"), cwd=str(here))
    check(b"./prog", workdir="/elsewhere", cwd=str(here))
    with pytest.raises(CommandNotFoundError):
        check(b"./missing", share(str(here)), cwd=str(here))


def test_the_working_directory_has_vanished(here: Path) -> None:
    """A relative name in a directory that is gone is left to the guest."""
    gone = here / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    check(b"./prog")
    os.chdir(here)
