"""Writable shares behave as a file system does, for programs of one guest, and show what the host changes."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from support.runs import Runner

#: Each line it prints is a thing that works.
IN_THE_GUEST = r"""
import ctypes, errno, fcntl, functools, os, sys
print = functools.partial(print, flush=True)
os.chdir(sys.argv[1])
open("file", "w").write("content")
os.chmod("file", 0o640); os.utime("file", ns=(1_000_000_001, 2_000_000_002))
print("mode", oct(os.stat("file").st_mode & 0o7777), "times", os.stat("file").st_atime_ns, os.stat("file").st_mtime_ns)
os.setxattr("file", "user.colour", b"green"); print("attribute", os.getxattr("file", "user.colour").decode())
os.link("file", "second"); print("links", os.stat("file").st_nlink, os.stat("file").st_ino == os.stat("second").st_ino)
os.symlink("file", "soft"); print("link", os.readlink("soft"), open("soft").read())
os.mkdir("dir"); os.rename("second", "dir/second"); print("renamed", os.listdir("dir"))
hole = os.open("hole", os.O_RDWR | os.O_CREAT); os.truncate(hole, 1 << 30); print("size", os.fstat(hole).st_size)
holder, other = os.open("lock", os.O_RDWR | os.O_CREAT), os.open("lock", os.O_RDWR)
fcntl.flock(holder, fcntl.LOCK_EX)
try: fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError as error: print("flock", errno.errorcode[error.errno])
fcntl.lockf(holder, fcntl.LOCK_EX)
if os.fork() == 0:
    try: fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error: print("lockf", errno.errorcode[error.errno] in ("EAGAIN", "EACCES"))
    os._exit(0)
os.wait()
libc = ctypes.CDLL(None)
watch = libc.inotify_init(); libc.inotify_add_watch(watch, b".", 0x100)
if os.fork() == 0:
    open("watched", "w"); os._exit(0)
os.wait()
event = os.read(watch, 4096); print("watch", event[16:].rstrip(b"\0").decode())
gone = open("gone", "w+"); gone.write("still"); gone.flush(); os.unlink("gone"); gone.seek(0)
print("open", gone.read())
print("ready")
sys.stdin.readline()
while True:
    if open("changed").read() == "by the host" and not os.path.exists("dir"):
        break
print("seen")
"""
WORKS = """mode 0o640 times 1000000001 2000000002
attribute green
links 2 True
link file content
renamed ['second']
size 1073741824
flock EAGAIN
lockf True
watch watched
open still
ready
"""


def test_a_writable_share_is_a_file_system(cloche: Runner, folder: Path) -> None:
    """What programs of a guest do to it works as on a disk, is on the host, and what the host does is seen."""
    (folder / "changed").write_text("not yet")
    os.chown(folder / "changed", cloche.user.entry.pw_uid, cloche.user.entry.pw_gid)
    guest = cloche.popen(
        f"--share={folder}:rw", "python3", "-c", IN_THE_GUEST, str(folder), stdin=subprocess.PIPE
    )
    assert guest.stdout is not None
    assert guest.stdin is not None
    said = b""
    while not said.endswith(b"ready\n"):
        line = guest.stdout.readline()
        assert line, (said, guest.stderr and guest.stderr.read())
        said += line
    (folder / "changed").write_text("by the host")
    (folder / "dir" / "second").unlink()
    (folder / "dir").rmdir()
    rest, _ = guest.communicate(b"\n", timeout=60)
    assert said.decode() == WORKS
    assert rest == b"seen\n"
    assert guest.returncode == 0
    found = (folder / "file").stat()
    assert (found.st_uid, found.st_mode & 0o7777, found.st_mtime_ns) == (
        cloche.user.entry.pw_uid,
        0o640,
        2_000_000_002,
    )
    assert os.getxattr(folder / "file", "user.colour") == b"green"
    assert (folder / "hole").stat().st_blocks == 0
