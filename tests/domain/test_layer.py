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


#: An overlay over a fresh ext4, mounted again and again; what is printed is what each mount has left.
OVER_EXT4 = """
import os, subprocess
def run(*words):
    subprocess.run(words, check=True)
run("mkfs.ext4", "-q", "/dev/disk/by-tag/d")
for place in ("/run/d", "/run/all", "/run/low"):
    os.mkdir(place)
run("mount", "-o", "noatime,noinit_itable", "/dev/disk/by-tag/d", "/run/d")
os.chdir("/run/d")
os.mkdir("up")
os.mkdir("work")
open("/run/low/below", "w").close()
inner = os.path.join("work", "work")
OPTIONS = "lowerdir=/run/low,upperdir=up,workdir=work,index=off"
def written():
    # What the first leaves in the journal the second one checks out.
    os.sync()
    os.sync()
    return int(open("/sys/block/vda/stat").read().split()[6])
def look(work):
    run("mount", "-t", "overlay", "-o", OPTIONS, "none", "/run/all")
    work(os.stat(inner).st_mode & 0o7777, os.listdir(inner), os.listxattr(inner))
    run("umount", "/run/all")
def use(*seen):
    print(*seen)
    os.unlink("/run/all/below")
    fd = os.open("/run/all", os.O_TMPFILE | os.O_RDWR)
    os.link(f"/proc/self/fd/{fd}", "/run/all/named", src_dir_fd=fd, follow_symlinks=True)
    os.setxattr("/run/all/named", "user.colour", b"green")
    os.close(fd)
look(use)
print(os.stat("up/below").st_rdev, sorted(os.listdir("up")), os.getxattr("up/named", "user.colour"))
# A layer in which something was deleted leaves a whiteout in its work directory.
look(print)
before = written()
look(print)
print(written() - before)
open(inner + "/left", "w").close()
look(print)
os.chmod(inner, 0o755)
look(print)
acl = bytes.fromhex("02000000" "01000700ffffffff" "04000500ffffffff" "20000500ffffffff")
os.setxattr(inner, "system.posix_acl_default", acl)
os.chmod(inner, 0)
look(print)
os.chown(inner, 1, 1)
look(lambda *seen: print(os.stat(inner).st_uid))
"""


def test_an_ext4_below_a_layer_is_left_alone_unless_something_is_left_in_it(cloche: Runner) -> None:
    """What is taken for granted is there; a mount writes nothing, or makes a work directory anew that has changed."""
    done = cloche("--privileged", "--disk", "d=size:64M", "python3", "-c", OVER_EXT4)
    assert done.stdout.decode().splitlines() == [
        "0 [] []",
        "0 ['below', 'named'] b'green'",
        *["0 [] []"] * 2,
        "0",
        *["0 [] []"] * 3,
        "0",
    ], done.stderr
