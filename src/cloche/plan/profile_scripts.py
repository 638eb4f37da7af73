"""What a guest does with the disk of a profile that is not its layer (layer 2, pure): scripts, and what they say.

They run as root of a guest that has the disk at /dev/disk/by-tag/profile and the system tree as its own root; those
that are live, in the guest that runs with the profile, with mounts of their own. What they say is a guest's word.
"""

from __future__ import annotations

from cloche.model.profile import Change

_BEGIN = """
import os, subprocess, sys
path = sys.argv[1]
disk, tree = "/run/cloche/disk", "/run/cloche/tree"
os.makedirs(disk, exist_ok=True)
os.makedirs(tree, exist_ok=True)
def run(*words):
    if subprocess.run(words, stdout=2).returncode:
        sys.exit(1)
"""

#: What a live one is started by: nobody else in the guest sees what it mounts.
APART = ("/usr/bin/unshare", "--mount")
#: What runs a script: its text and its argument follow.
PYTHON = ("/usr/bin/python3", "-I", "-S", "-c")
#: The disk is mounted already, and a second mount shows the same file system.
_MOUNT = """
run("mount", "-t", "ext4", "/dev/disk/by-tag/profile", disk)
"""

_COMPARE = """
import stat
run("mount", "-t", "virtiofs", "-o", "ro", "system", tree)
upper = os.fsencode(disk + "/upper")
lower = os.fsencode(tree)
home = os.fsencode(sys.argv[2]).rstrip(b"/") + b"/"
def look(name):
    try:
        return os.lstat(name)
    except (FileNotFoundError, NotADirectoryError):
        return None
def same(a, b, x, y):
    if (x.st_mode, x.st_uid, x.st_gid) != (y.st_mode, y.st_uid, y.st_gid):
        return False
    if stat.S_ISDIR(x.st_mode):
        return True
    if stat.S_ISLNK(x.st_mode):
        return os.readlink(a) == os.readlink(b)
    if not stat.S_ISREG(x.st_mode) or x.st_size != y.st_size:
        return False
    with open(a, "rb") as one, open(b, "rb") as two:
        while True:
            p, q = one.read(1 << 20), two.read(1 << 20)
            if p != q:
                return False
            if not p:
                return True
def opaque(name):
    try:
        return os.getxattr(name, b"trusted.overlay.opaque", follow_symlinks=False) == b"y"
    except OSError:
        return False
def say(kind, size, name):
    sys.stdout.buffer.write(b"%s %d\\0%s\\0" % (kind, size, name))
def gone(name, kept=frozenset()):
    for entry in sorted(os.listdir(lower + name)):
        if entry not in kept:
            say(b"deleted", 0, name.rstrip(b"/") + b"/" + entry)
def compare(name, shown):
    mine = look(upper + name)
    if mine is None:
        return
    theirs = look(lower + name) if shown else None
    if stat.S_ISCHR(mine.st_mode) and mine.st_rdev == 0:
        if theirs is not None:
            say(b"deleted", 0, name)
        return
    is_dir = stat.S_ISDIR(mine.st_mode)
    if theirs is None and name.startswith(home):
        # A home begins as a copy of that.
        skeleton = b"/etc/skel" + name[len(home) - 1:]
        begun = look(lower + skeleton)
        if begun is not None and (is_dir or stat.S_ISREG(begun.st_mode)):
            begun = os.stat_result((begun.st_mode, *begun[1:4], mine.st_uid, mine.st_gid, *begun[6:]))
            if same(upper + name, lower + skeleton, mine, begun):
                theirs = mine
    # The home and what it lies in are made at a profile's first start.
    if theirs is not mine and not (is_dir and home.startswith(name.rstrip(b"/") + b"/")):
        if theirs is None:
            say(b"added", 0 if is_dir else mine.st_size, name)
        elif not same(upper + name, lower + name, mine, theirs):
            say(b"changed", 0 if is_dir else mine.st_size, name)
    if not is_dir:
        return
    entries = sorted(os.listdir(upper + name))
    merged = theirs is not None and stat.S_ISDIR(theirs.st_mode)
    if merged and opaque(upper + name):
        gone(name, frozenset(entries))
    for entry in entries:
        compare(name.rstrip(b"/") + b"/" + entry, merged)
sys.setrecursionlimit(100000)
compare(os.fsencode(path), True)
sys.stdout.flush()
"""

#: Writes three fields for each difference, each behind a NUL: kind and size, path.
DIFF = (
    _BEGIN
    + """
run("mount", "-o", "ro,noload", "/dev/disk/by-tag/profile", disk)
"""
    + _COMPARE
)
LIVE_DIFF = _BEGIN + _MOUNT + _COMPARE

#: Ends with 3 when nothing is there.
RESET = (
    _BEGIN
    + """
import shutil
run("mount", "/dev/disk/by-tag/profile", disk)
at = disk + "/upper"
parts = [part for part in path.split("/") if part]
for part in parts[:-1]:
    at += "/" + part
    if os.path.islink(at) or not os.path.isdir(at):
        at = ""
        break
status = 0
if not parts or not at or not os.path.lexists(at + "/" + parts[-1]):
    status = 3
elif os.path.isdir(at + "/" + parts[-1]) and not os.path.islink(at + "/" + parts[-1]):
    # Out of sight in one step.
    aside = disk + "/reset"
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(at + "/" + parts[-1], aside)
    shutil.rmtree(aside)
else:
    os.unlink(at + "/" + parts[-1])
run("umount", disk)
sys.exit(status)
"""
)

_RESIZE = """
import fcntl, struct
device = os.open("/dev/disk/by-tag/profile", os.O_RDONLY)
size = os.lseek(device, 0, os.SEEK_END)
os.close(device)
place = os.open(disk, os.O_RDONLY)
# EXT4_IOC_RESIZE_FS (linux/ext4.h): it takes a number of blocks.
fcntl.ioctl(place, 0x40086610, struct.pack("Q", size // os.fstatvfs(place).f_bsize))
os.close(place)
run("umount", disk)
"""

GROW = _BEGIN + _MOUNT + _RESIZE

#: Waits until the disk has the size that is its argument; ends early when its input does.
LIVE_GROW = (
    _BEGIN
    + """
import select, socket
# What the kernel says of devices (NETLINK_KOBJECT_UEVENT), listened to before the size is looked at.
events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15)
events.bind((0, 1))
print("ready", flush=True)
device = os.open("/dev/disk/by-tag/profile", os.O_RDONLY)
while os.lseek(device, 0, os.SEEK_END) < int(path):
    ready = select.select((events, 0), (), ())[0]
    if 0 in ready:
        sys.exit(1)
    events.recv(65536)
os.close(device)
"""
    + _MOUNT
    + _RESIZE
)

#: Has caches made anew by the tools that make them, where the layer has its own in front of the host's: it was made of
#: the host's files as they were. Caches that look at the age of what they were made of (those of fontconfig, of Python,
#: of man-db) are not among them. Writes a line for each: whether that was done, and its name.
RENEW = (
    _BEGIN
    + _MOUNT
    + """
import glob
upper = disk + "/upper"
def place(name, levels=1):
    for _ in range(levels):
        name = os.path.dirname(name)
    return name
caches = (
    ("/etc/ld.so.cache", lambda name: ("ldconfig",)),
    ("/usr/share/glib-2.0/schemas/gschemas.compiled", lambda name: ("glib-compile-schemas", place(name))),
    ("/usr/share/mime/mime.cache", lambda name: ("update-mime-database", place(name))),
    ("/usr/share/icons/*/icon-theme.cache", lambda name: ("gtk-update-icon-cache", "-f", "-q", place(name))),
    ("/usr/share/applications/mimeinfo.cache", lambda name: ("update-desktop-database", "-q", place(name))),
    ("/usr/lib/*/gio/modules/giomodule.cache",
     lambda name: (place(name, 3) + "/glib-2.0/gio-querymodules", place(name))),
    ("/usr/lib/*/gdk-pixbuf-2.0/*/loaders.cache",
     lambda name: (place(name, 2) + "/gdk-pixbuf-query-loaders", "--update-cache")),
)
for pattern, maker in caches:
    for found in sorted(glob.glob(upper + pattern)):
        if os.path.islink(found) or not os.path.isfile(found):
            continue
        name = found[len(upper):]
        try:
            done = not subprocess.run(maker(name), stdout=2, stdin=subprocess.DEVNULL, timeout=120).returncode
        except (OSError, subprocess.TimeoutExpired):
            done = False
        print("renewed" if done else "stale", name, flush=True)
"""
)

#: Lets nobody write to the disk until its input ends, and says so before and after.
LIVE_FREEZE = (
    _BEGIN
    + _MOUNT
    + """
import fcntl, signal
def over(signo, frame):
    sys.exit(1)
for signo in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(signo, over)
place = os.open(disk, os.O_RDONLY)
# FIFREEZE and FITHAW (linux/fs.h).
fcntl.ioctl(place, 0xC0045877, 0)
try:
    os.write(1, b"frozen\\n")
    os.read(0, 1)
finally:
    fcntl.ioctl(place, 0xC0045878, 0)
os.write(1, b"thawed\\n")
"""
)

_KINDS = {b"added": "added", b"changed": "changed", b"deleted": "deleted"}
_MOST = 64 << 20


def parse_changes(said: bytes) -> tuple[Change, ...]:
    """Read what DIFF says.

    Raises:
        ValueError: That makes no sense, or is too much.
    """
    if len(said) > _MOST:
        raise ValueError("too much")
    *words, rest = said.split(b"\0")
    if rest or len(words) % 2:
        raise ValueError("cut")
    changes = []
    for head, path in zip(words[::2], words[1::2], strict=True):
        kind, _, size = head.partition(b" ")
        if kind not in _KINDS or not size.isdigit() or len(size) > 19 or not path.startswith(b"/"):
            raise ValueError("no change")
        changes.append(Change(_KINDS[kind], int(size), path))
    return tuple(changes)
