"""One suite for every driver (DESIGN D7): what the contract promises, each driver keeps or refuses."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from cloche.guest.wire import FIRST_KEY, preface

if TYPE_CHECKING:
    from pathlib import Path

    from support.runs import Runner

DRIVERS = ("qemu", "bwrap")


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest, cloche: Runner) -> str:
    """Return each driver's name in turn, after a run in which its notices are given."""
    name: str = request.param
    assert cloche("--driver", name, "true").returncode == 0
    return name


def test_streams_and_status(cloche: Runner, driver: str) -> None:
    """Output, errors, input and status pass."""
    done = cloche("--driver", driver, "sh", "-c", "cat; echo err >&2; exit 5", input=b"in\x00\xff")
    assert (done.returncode, done.stdout, done.stderr) == (5, b"in\x00\xff", b"err\n")


def test_the_stage_is_the_same(cloche: Runner, driver: str, folder: Path) -> None:
    """The same parts of the host are there, the same are not, and the caller is the caller."""
    (folder / "secret").write_text("x")
    script = (
        f"id -un; test -x /usr/bin/env && echo usr; ls /etc/ssh {folder} /var/lib/dpkg 2>/dev/null;"
        "touch ~/x && echo home"
    )
    done = cloche("--driver", driver, "sh", "-c", script)
    assert done.stdout.decode().split() == [cloche.user.entry.pw_name, "usr", "home"], done.stderr


def test_shares(cloche: Runner, driver: str, folder: Path) -> None:
    """Shares are writable when asked for, and read-only otherwise."""
    script = "echo made > made; echo no > /ro/file"
    done = cloche("--driver", driver, "--here", "--share", f"{folder}:at=/ro", "sh", "-c", script, cwd=folder)
    assert (folder / "made").read_text() == "made\n"
    assert done.returncode == 2
    assert b"Read-only file system" in done.stderr


def test_a_name_is_no_word_of_the_channel(cloche: Runner, driver: str, folder: Path) -> None:
    """A shared directory may be called like the beginning of a first byte stream to the agent."""
    named = folder / os.fsdecode(preface(FIRST_KEY))
    named.mkdir()
    done = cloche("--driver", driver, "--timeout", "60s", "--share", f"{named}", "echo", "here")
    assert (done.returncode, done.stdout) == (0, b"here\n"), done.stderr


def test_unknown_program(cloche: Runner, driver: str) -> None:
    """A program that is not there is status 127."""
    done = cloche("--driver", driver, "/opt/no-such-program")
    assert done.returncode == 127


def test_time_limit(cloche: Runner, driver: str) -> None:
    """A program that does not end in time is ended."""
    assert cloche("--driver", driver, "--timeout", "1s", "sleep", "1000").returncode == 124


@pytest.mark.parametrize(
    "words", [["-m", "512M"], ["-c", "2"], ["--pids", "9"], ["--kernel", "x"], ["--privileged"]]
)
def test_what_bwrap_cannot_do_is_refused(cloche: Runner, words: list[str]) -> None:
    """The weaker driver refuses what it cannot do instead of leaving it out."""
    done = cloche("--driver", "bwrap", *words, "true")
    assert done.returncode == 125
    assert b"the bwrap driver cannot do" in done.stderr


def test_weaker_isolation_is_told(cloche: Runner) -> None:
    """The user is told that namespaces are weaker, and `drivers` shows what each driver gives."""
    done = cloche("--driver", "bwrap", "-v", "true")
    assert b"namespaces only" in done.stderr
    listing = cloche("drivers").stdout.decode()
    assert "emulated-vm" in listing or "hardware-vm" in listing
    assert "namespaces" in listing
