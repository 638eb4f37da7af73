"""A host that is upgraded below a profile: what follows it, what stays, and what is made anew.

The host's /opt is another one for these tests, in a mount namespace of their own: nothing of the host is written to.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.domains import OWN
from support.profiles import is_clean, profile, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.runs import Runner

#: linux/sched.h and linux/mount.h.
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18


@contextmanager
def another_opt() -> Iterator[None]:
    """Give this thread, and what it starts, an empty /opt; everybody else keeps theirs."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(result: int) -> None:
        assert result == 0, os.strerror(ctypes.get_errno())

    here = os.getcwd()
    before = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    call(libc.unshare(CLONE_NEWNS))
    try:
        call(libc.mount(b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None))
        call(libc.mount(b"opt", b"/opt", b"tmpfs", ctypes.c_ulong(0), b"mode=755"))
        yield
    finally:
        call(libc.setns(before, CLONE_NEWNS))
        os.close(before)
        os.chdir(here)


@pytest.mark.skipif(os.geteuid() != 0, reason="who installs packages is root")
def test_a_host_that_is_upgraded(cloche: Runner) -> None:
    """A package that is swapped, both ways: what the profile changed stays, all else follows, and one line says so."""
    mine, theirs = (Path(f"/opt/cloche-test-{os.getpid()}-{name}") for name in ("mine", "theirs"))

    def install(version: str) -> None:
        for path in (mine, theirs):
            fresh = path.with_suffix(".dpkg-new")
            fresh.write_text(f"{version}\n")
            fresh.rename(path)

    with another_opt(), profile(cloche, "up" + OWN) as place:
        install("1")
        run(cloche, f"echo changed > {mine}; cat {theirs}", "--privileged", "-p", "up" + OWN)
        for version in ("2", "1"):
            install(version)
            shown = cloche.sh(f"cat {mine} {theirs}", "-p", "up" + OWN)
            assert shown.stdout == f"changed\n{version}\n".encode(), shown.stderr
            assert (
                f"the host's programs were changed since the profile up{OWN} was last started".encode()
                in shown.stderr
            )
            assert run(cloche, f"cat {theirs}", "-p", "up" + OWN) == f"{version}\n".encode()
        theirs.unlink()
        assert cloche.sh(f"cat {theirs}", "-p", "up" + OWN).returncode == 1
        changes = json.loads(cloche("profile", "diff", "--json", "up" + OWN, "/opt").stdout)
        assert [(one["kind"], one["path"]) for one in changes] == [("changed", str(mine))]
        assert cloche("profile", "reset", "up" + OWN, str(mine)).returncode == 0
        assert run(cloche, f"cat {mine}", "-p", "up" + OWN) == b"1\n"
        assert is_clean(place / "disk.img")


#: A directory whose libraries the profile's own cache of them is to know.
LIBRARIES = Path("/opt/cloche-libraries")
KNOWN = f"/sbin/ldconfig -p | grep -c {LIBRARIES} || true"


@pytest.mark.skipif(os.geteuid() != 0, reason="who installs packages is root")
def test_caches_of_the_old_host_are_made_anew(cloche: Runner) -> None:
    """A profile's own cache of libraries knows what the host got since, once, and one line says so."""
    name = "caches" + OWN
    with another_opt(), profile(cloche, name) as place:
        LIBRARIES.mkdir()
        run(
            cloche,
            f"echo {LIBRARIES} > /etc/ld.so.conf.d/own.conf; ldconfig; touch /usr/share/icons/icon-theme.cache",
            "--privileged",
            *("-p", name),
        )
        # The twin: as long as the host is the same, a cache is the profile's own business.
        library = next(Path("/usr/lib").glob("*/libm.so.6"))
        shutil.copy(library, LIBRARIES / library.name)
        assert run(cloche, KNOWN, "-p", name) == b"0\n"
        Path("/opt/installed").mkdir()
        shown = cloche.sh(KNOWN, "-p", name)
        assert shown.stdout == b"1\n", shown.stderr
        assert shown.stderr.count(b"\n") == 2
        assert f"caches in the profile {name}".encode() in shown.stderr
        assert shown.stderr.endswith(b"made anew: /etc/ld.so.cache\n")
        assert run(cloche, KNOWN, "-p", name) == b"1\n"
        assert is_clean(place / "disk.img")
