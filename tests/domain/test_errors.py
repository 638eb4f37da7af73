"""Bad input: one clear sentence, a hint, a status of cloche's own, never a traceback."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from support.runs import Runner


def check(done: subprocess.CompletedProcess[bytes], status: int, *words: str) -> None:
    """Hold what every error looks like."""
    text = done.stderr.decode()
    assert done.returncode == status, text
    assert text.startswith("cloche: "), text
    assert "Traceback" not in text
    assert len(text.splitlines()[0]) < 250
    for word in words:
        assert word in text, text


def test_unknown_program(cloche: Runner) -> None:
    """A name nobody knows is status 127, before any machine starts."""
    check(cloche("no-such-program"), 127, "no-such-program was not found", "hint:")


def test_program_outside_the_shares(cloche: Runner, folder: Path) -> None:
    """A program of a directory that is not shared is status 127 and the hint names the remedy."""
    script = folder / "script"
    script.write_text("#!/bin/sh\necho hi\n")
    script.chmod(0o755)
    check(cloche("./script", cwd=folder), 127, "--here")
    check(cloche(str(script)), 127, "--share")
    assert cloche("--here", "./script", cwd=folder).stdout == b"hi\n"


def test_not_executable(cloche: Runner, folder: Path) -> None:
    """A file without execute permission, a directory and a foreign binary are status 126."""
    (folder / "plain").write_text("text\n")
    foreign = folder / "foreign"
    foreign.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xb7\x00" + bytes(44))
    foreign.chmod(0o755)
    for path in (folder / "plain", foreign):
        if os.geteuid() == 0:
            os.chown(path, cloche.user.entry.pw_uid, cloche.user.entry.pw_gid)
    check(cloche("--here", "./plain", cwd=folder), 126, "cannot be executed")
    check(cloche("/usr"), 126, "is a directory")
    check(cloche("--here", "./foreign", cwd=folder), 126, "wrong architecture")


@pytest.mark.parametrize(
    "words, status, said",
    [
        (["--share", "/", "true"], 125, "whole root"),
        (["--share", "/no/such/place", "true"], 125, "No such file"),
        (["--share", "/etc/passwd", "true"], 125, "--include"),
        (["--share", "/srv:at=/usr", "true"], 125, "/usr"),
        (["-m", "8M", "true"], 125, "too little"),
        (["-m", "900G", "true"], 125, "more than this host has"),
        (["-m", "much", "true"], 125, "is not a size"),
        (["-c", "0", "true"], 125, "whole number"),
        (["--kernel", "none-such", "true"], 125, "none-such"),
        (["--driver", "vmware", "true"], 125, "vmware"),
        (["--no-such-option", "true"], 125, "unknown option"),
        (["-u", "somebody", "true"], 125, "somebody"),
        (["-w", "/no/where", "true"], 127, "/no/where"),
        (["run"], 125, "no program"),
    ],
)
def test_words_that_make_no_sense(cloche: Runner, words: list[str], status: int, said: str) -> None:
    """Each wrong word is named."""
    check(cloche(*words), status, said)


def test_unreadable_share(cloche: Runner, folder: Path) -> None:
    """A directory the caller may not read is refused before anything starts."""
    closed = folder / "closed"
    closed.mkdir(mode=0o000)
    check(cloche("--share", str(closed), "true"), 125, "cannot share")


def test_unwritable_cache(cloche: Runner, folder: Path) -> None:
    """A cache directory that cannot be made is named."""
    blocked = folder / "file"
    blocked.write_text("")
    check(cloche("true", env={"XDG_CACHE_HOME": str(blocked)}), 125, "hint:")


def test_kernel_that_does_not_boot(cloche: Runner, folder: Path) -> None:
    """A damaged kernel is refused, one that stays silent ends at the deadline."""
    check(cloche("--boot-timeout", "0.05s", "true"), 125, "did not answer within", "--boot-log")
