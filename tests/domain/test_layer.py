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


#: Prints how many of the names below a few directories are not what they seem, and the device numbers seen.
NUMBERS = """
import os
odd, devices, largest = [], set(), 0
os.makedirs("/tmp/a/b")
open("/tmp/a/f", "w").close()
for top in ("/tmp/a", "/usr/share", "/usr/bin", "/usr/lib"):
    for entry in os.scandir(top):
        info = entry.stat(follow_symlinks=False)
        devices.add(info.st_dev)
        largest = max(largest, info.st_ino)
        if info.st_ino != entry.inode():
            odd.append(entry.path)
print(odd[:3], len(devices), largest < 1 << 53, os.path.ismount("/usr/bin/env"))
"""


def test_one_file_system_has_one_device_and_one_number_for_each_file(cloche: Runner) -> None:
    """What a directory lists is what stat(2) says, everything has one device, and numbers fit into a double."""
    done = cloche("python3", "-c", NUMBERS)
    assert done.stdout == b"[] 1 True False\n", done.stderr


def test_without_mapped_numbers_a_file_seems_to_be_a_mount_point(cloche: Runner) -> None:
    """The twin: an overlay whose layers keep their own numbers."""
    script = """
    mkdir -p /run/o /run/low && mount -t tmpfs none /run/o && mount -t tmpfs none /run/low && cd /run/o
    mkdir -p up work all /run/low/bin && touch /run/low/bin/env
    mount -t overlay -o lowerdir=/run/low,upperdir=up,workdir=work,xino=XINO none all || exit 9
    python3 -c 'import os; print(os.path.ismount("/run/o/all/bin/env"))'
    """
    said = [cloche.sh(script.replace("XINO", word), "--privileged").stdout for word in ("off", "on")]
    assert said == [b"True\n", b"False\n"]
