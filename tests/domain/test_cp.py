"""Copying between host and guest: trees with all that belongs to them, archives as streams, and a guest that lies."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from support.domains import OWN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.runs import Runner

#: A tar that says what it likes instead of what it was asked for.
LIAR = """#!/bin/sh
cd /tmp/evil && exec /usr/bin/tar.true -c --format=posix --absolute-names -f - \\
    wanted wanted/../../escaped /tmp/evil/absolute wanted/way
"""


@pytest.fixture(scope="module")
def domain(cloche: Runner) -> Iterator[str]:
    """Provide a domain to copy from and to."""
    started = cloche("run", "-d", "--name", "copies" + OWN, "--", "sleep", "3600")
    assert started.returncode == 0, started.stderr
    yield "copies" + OWN
    cloche("stop", "-t", "0", "copies" + OWN)
    cloche("rm", "copies" + OWN)


def as_user(cloche: Runner, script: str, folder: Path) -> bytes:
    """Run a script of ``sh`` as the user in the folder."""
    return cloche.user.run(["sh", "-c", script], cwd=folder, check=True).stdout


def test_a_tree_there_and_back(cloche: Runner, domain: str, folder: Path) -> None:
    """Modes, times, links, second names, holes and odd names survive both ways; the guest's user owns what came."""
    script = """
    mkdir -p tree/sub; echo text >tree/file; chmod 640 tree/file; touch -d 2001-02-03T04:05:06.789 tree/file
    ln tree/file tree/sub/second; ln -s ../file tree/sub/link; truncate -s 30M tree/sparse; echo end >>tree/sparse
    printf x >"tree/odd | & name"; chmod 700 tree/sub
    """
    as_user(cloche, script, folder)
    assert cloche("cp", "tree", f"{domain}:/tmp/there", cwd=folder).returncode == 0
    seen = cloche(
        "exec", domain, "sh", "-c", "cd /tmp/there; stat -c '%a %u %Y' file; du -k sparse; cat sub/link"
    )
    uid = cloche.user.entry.pw_uid
    assert seen.stdout.decode().split() == ["640", str(uid), "981173106", "4", "sparse", "text"]
    done = cloche("cp", f"{domain}:/tmp/there", "back", cwd=folder)
    assert (done.returncode, done.stderr) == (0, b"")
    as_user(cloche, "diff -r --no-dereference tree back && test back/file -ef back/sub/second", folder)
    listing = "find . -printf '%P %m %s %T@ %l\\n' | sort"
    assert as_user(cloche, f"cd tree; {listing}", folder) == as_user(cloche, f"cd back; {listing}", folder)
    assert int(as_user(cloche, "du -k back/sparse", folder).split()[0]) <= 8
    # Into a directory that is there it keeps its name, and a single file may get another one.
    assert cloche("cp", "tree/odd | & name", f"{domain}:/tmp/we|ird & \\1 name", cwd=folder).returncode == 0
    assert cloche("cp", f"{domain}:/tmp/we|ird & \\1 name", ".", cwd=folder).returncode == 0
    assert (folder / "we|ird & \\1 name").read_bytes() == b"x"
    assert cloche("cp", "tree", f"{domain}:/tmp", cwd=folder).returncode == 0
    assert cloche("exec", domain, "cat", "/tmp/tree/file").stdout == b"text\n"
    root_made = cloche("cp", f"{domain}:/etc/hostname", "hostname", cwd=folder)
    assert (root_made.returncode, (folder / "hostname").stat().st_uid) == (0, uid)


def test_archives_as_streams(cloche: Runner, domain: str, folder: Path) -> None:
    """What is written to a pipe is tar's, and what comes from one is unpacked."""
    as_user(cloche, "mkdir -p s/d; echo one >s/d/f", folder)
    archive = as_user(cloche, "tar -c s", folder)
    assert cloche("cp", "-", f"{domain}:/var/tmp", input=archive).returncode == 0
    given = cloche("cp", f"{domain}:/var/tmp/s", "-")
    assert given.returncode == 0
    listed = subprocess.run(["tar", "-t"], input=given.stdout, capture_output=True, check=True).stdout
    assert listed.split() == [b"s/", b"s/d/", b"s/d/f"]
    refused = cloche("cp", "-", f"{domain}:/var/tmp", input=b"no archive" * 100)
    assert (refused.returncode, b"tar in the guest has failed" in refused.stderr) == (125, True)


@pytest.mark.parametrize(
    "words, said",
    [
        (("D:/no/such", "."), b"No such file or directory"),
        (("no-such", "D:/tmp"), b"No such file or directory"),
        (("D:/etc/hostname", "no/such/place"), b"No such file or directory"),
        (("D:/etc/hostname", "no-such/"), b"there is no directory"),
        (("D:tmp", "."), b"no absolute path"),
        (("D:/", "."), b"root cannot be copied"),
        (("a", "b"), b"one of the two names a domain"),
        (("D:/a", "D:/b"), b"one of the two names a domain"),
        (("nobody:/a", "b"), b"you have no running domain"),
    ],
)
def test_what_cannot_be_copied(
    cloche: Runner, domain: str, folder: Path, words: tuple[str, ...], said: bytes
) -> None:
    """A sentence says why, and nothing is made."""
    done = cloche("cp", *(word.replace("D:", f"{domain}:") for word in words), cwd=folder)
    assert (done.returncode, said in done.stderr) == (125, True), done
    assert b"Traceback" not in done.stderr
    assert list(folder.iterdir()) == []


def test_a_guest_that_lies_leads_nowhere(cloche: Runner, domain: str, folder: Path) -> None:
    """A tar in the guest that was replaced gives names and links that lead outside: told, and left out."""
    script = """
    mkdir -p /tmp/evil/wanted; echo mine >/tmp/evil/wanted/good; ln -s /etc/passwd /tmp/evil/wanted/way
    echo no >/tmp/escaped; echo no >/tmp/evil/absolute; cp /usr/bin/tar /usr/bin/tar.true
    cat >/tmp/liar && chmod 755 /tmp/liar && mv /tmp/liar /usr/bin/tar
    """
    made = cloche("exec", "-u", "root", domain, "sh", "-c", script, input=LIAR.encode())
    assert made.returncode == 0, made.stderr
    inside = folder / "in"
    inside.mkdir()
    os.chown(inside, cloche.user.entry.pw_uid, cloche.user.entry.pw_gid)
    done = cloche("cp", f"{domain}:/srv/wanted", ".", cwd=inside)
    assert done.returncode == 1, done
    for said in (b"its name leads elsewhere", b"it is a link that leads outside"):
        assert said in done.stderr
    assert (inside / "wanted" / "good").read_text() == "mine\n"
    assert sorted(path.name for path in (inside / "wanted").iterdir()) == ["good"]
    assert sorted(path.name for path in folder.iterdir()) == ["in"]
    restored = cloche("exec", "-u", "root", domain, "sh", "-c", "mv /usr/bin/tar.true /usr/bin/tar")
    assert restored.returncode == 0
