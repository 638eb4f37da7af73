"""System trees that are not the host's: directories, images, archives; another release with another libc."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from support.errors import check_error

if TYPE_CHECKING:
    from pathlib import Path

    from support.runs import Runner


def make(cloche: Runner, script: str, timeout: float = 120) -> None:
    """Run a script on the host as the ordinary user."""
    done = cloche.user.run(["sh", "-ec", f"PATH=$PATH:/usr/sbin:/sbin; {script}"], timeout=timeout)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def tree(folder: Path, cloche: Runner) -> Path:
    """Return the tree of a small system, not usr-merged, with a user of its own and links that lead away."""
    path = folder / "tree"
    make(
        cloche,
        f"""mkdir -p {path}/bin {path}/etc/skel {path}/var/lib/own; cd {path}; cp /bin/busybox bin
        for name in sh cat ls id touch stat mount; do ln -s busybox bin/$name; done
        echo strange:x:{cloche.user.entry.pw_uid}:7::/nowhere:/bin/false > etc/passwd; echo own > var/lib/own/file
        echo begin > etc/skel/begin; ln -s /proc/self/cmdline etc/resolv.conf""",
    )
    return path


SCRIPT = """
cat /var/lib/own/file ~/begin /etc/hostname; id -un; touch /bin/mine && ls /bin/mine; ls -d /usr /opt 2>/dev/null
echo $SHELL; stat -c %u /bin/busybox; cat /etc/resolv.conf; touch /tmp/x && echo temporary
mount | while read what on at rest; do case $at in /) echo "$rest";; esac; done
"""


def told(cloche: Runner) -> bytes:
    """Return what SCRIPT says in a guest of root's with that tree."""
    name = cloche.user.entry.pw_name
    return (f"own\nbegin\ncloche\n{name}\n/bin/sh\n0\n# This domain has no network.\ntemporary\n").encode()


def test_a_tree_is_a_system_wherever_it_comes_from(cloche: Runner, folder: Path, tree: Path) -> None:
    """A directory, an image and an archive are shown whole, as root's, with the caller as a user; none is changed."""
    before = sorted(tree.rglob("*"))
    make(
        cloche,
        f"""cd {folder}; mksquashfs tree tree.img -quiet -no-progress -all-root
        tar -C tree --owner=0 --group=0 -cJf tree.tar.xz .""",
    )
    # A run that was killed while it unpacked something has left this.
    half = "~/.cache/cloche/roots/half.new"
    make(cloche, f"mkdir -p -m 700 ~/.cache/cloche/roots; : > {half}")
    for name in ("tree", "tree.img", "tree.tar.xz"):
        done = cloche(f"--root={folder}/{name}", "sh", "-c", SCRIPT)
        lines = done.stdout.splitlines(keepends=True)
        assert b"".join(lines[:-1]) == told(cloche), (name, done.stdout, done.stderr)
        assert b"nodev" in lines[-1], name
    assert sorted(tree.rglob("*")) == before
    make(cloche, f"! test -e {half}")
    # It was unpacked once, and an archive with the same content is the same.
    make(cloche, f"mv {folder}/tree.tar.xz {folder}/again")
    again = cloche(f"--root={folder}/again", "cat", "/var/lib/own/file")
    assert (again.stdout, again.stderr) == (b"own\n", b"")


def test_root_of_the_guest_can_change_all_of_it(cloche: Runner, tree: Path) -> None:
    """What it changes goes to the writable layer; shares and mounts have their places in it."""
    done = cloche(
        *("--privileged", f"--root={tree}", f"--share={tree}/etc:at=/srv/host", "--mount=ram:at=/scratch"),
        *(
            "sh",
            "-c",
            "busybox rm -r /var/lib/own && echo new > /etc/passwd && ls /srv/host; touch /scratch/a && echo full",
        ),
    )
    assert done.stdout == b"passwd\nresolv.conf\nskel\nfull\n", done.stderr
    assert (tree / "var/lib/own/file").exists()


def test_trees_that_are_none(cloche: Runner, folder: Path, tree: Path) -> None:
    """Each is one sentence; an archive that is cut off leaves no image behind that would be taken for whole."""
    make(
        cloche,
        f"cd {folder}; truncate -s 1M zeros; tar -C tree -czf a.tgz .; truncate -s 300K a.tgz; mkdir empty",
    )
    check_error(cloche(f"--root={folder}/none", "true"), 125, "No such file")
    check_error(cloche("--root=/", "true"), 125, "the whole root directory")
    check_error(cloche("--root=/proc", "true"), 125, "the host's kernel")
    check_error(cloche(f"--root={folder}/zeros", "true"), 125, "no file system", "zeros")
    check_error(cloche(f"--root={folder}/empty", "true"), 127, "true was not found in the guest")
    for _ in range(2):
        done = cloche(f"--root={folder}/a.tgz", "true")
        text = done.stderr.decode()
        assert done.returncode == 125
        assert "cannot be unpacked: tar ended with status" in text, text
        assert text.splitlines()[-1].startswith("hint: ")


@pytest.mark.long
def test_another_release_runs_with_its_own_libc(cloche: Runner, folder: Path) -> None:
    """Debian 13: an ordinary user's guest runs its programs, and knows its packages and set-user-id programs."""
    tar = folder / "trixie.tar"
    # By whoever runs the tests: root, or a user who has subordinate ids, which the one made for tests has not.
    subprocess.run(["mmdebstrap", "--quiet", "--variant=essential", "trixie", tar], check=True, timeout=900)
    tar.chmod(0o644)
    script = "cat /etc/debian_version; dpkg -s libc6 | grep ^Version; stat -c '%U %a' /usr/bin/su"
    done = cloche(f"--root={tar}", "bash", "-c", script, timeout=300)
    lines = done.stdout.decode().splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[0].startswith("13.")
    assert lines[1].startswith("Version: 2.41")
    assert lines[2] == "root 4755"
