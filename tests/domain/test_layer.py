"""The writable layer does what a file system should: files are removed, renamed, made without a name, described."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from support.runs import Runner


def test_what_came_from_below_can_be_removed_and_replaced(cloche: Runner) -> None:
    """A file of the system tree that is removed or renamed is gone, and comes back only when it is made anew."""
    script = """
    cd /usr/share/doc && rm -r base-files && test ! -e base-files && mkdir base-files && ls -A base-files
    mv /usr/bin/true /usr/bin/false && /usr/bin/false && test ! -e /usr/bin/true && echo renamed
    """
    assert cloche.sh(script, "--privileged").stdout == b"renamed\n"


def test_files_without_a_name_and_attributes(cloche: Runner) -> None:
    """O_TMPFILE and extended attributes work on the layer, as the kernel takes for granted of a tmpfs."""
    program = """
import os
fd = os.open("/usr/share", os.O_TMPFILE | os.O_RDWR)
os.write(fd, b"nameless")
os.link(f"/proc/self/fd/{fd}", "/usr/share/named", src_dir_fd=fd, follow_symlinks=True)
os.setxattr("/usr/share/named", "user.colour", b"green")
os.rename("/usr/share/named", "/usr/share/renamed")
print(open("/usr/share/renamed").read(), os.getxattr("/usr/share/renamed", "user.colour").decode())
"""
    done = cloche("--privileged", "python3", "-c", program)
    assert done.stdout == b"nameless green\n", done.stderr
