"""What is read of a process from /proc, with real processes: as root and as an ordinary user."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from cloche.host.fdlook import read_sockets
from cloche.host.pids import start_time
from cloche.host.procfs import NAMESPACES, Process, descendants, read_process
from support.wardens import ROLES, Role, make_role

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.users import OrdinaryUser

#: Becomes what its words say, says so, and waits for the end of its input.
CHILD = """
import ctypes, os, socket, struct, sys, threading
libc = ctypes.CDLL(None)
words = sys.argv[1:]
kept = []
if "thread" in words:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
if "bare" in words:
    libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
if "filter" in words:
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    allow = struct.pack("<HBBI", 6, 0, 0, 0x7FFF0000)
    assert libc.prctl(22, 2, ctypes.byref(Program(1, allow)), 0, 0) == 0
if "files" in words:
    kept += [socket.socket(socket.AF_UNIX), open("/etc/passwd")]
    kept += [*socket.socketpair(), socket.create_server(("127.0.0.1", 0))]
    kept[0].bind(b"\\0line\\n0: x y 0000 z 01 nine\\n0: 1 2 3 4 5 six @")
if "closed" in words:
    assert libc.prctl(4, 0, 0, 0, 0) == 0
def ready():
    print("ready", flush=True)
    sys.stdin.read()
    os._exit(0)
if "headless" in words:
    def wait():
        while b") Z " not in open("/proc/self/stat", "rb").read():
            pass
        ready()
    threading.Thread(target=wait).start()
    libc.syscall(60, 0)
ready()
"""


@pytest.fixture(params=ROLES)
def role(request: pytest.FixtureRequest, ordinary: OrdinaryUser) -> Role:
    """Provide root and an ordinary user, one after the other."""
    return make_role(request.param, ordinary)


@contextmanager
def child(*words: str) -> Iterator[int]:
    """Provide the id of a process that is as these words say."""
    argv = ["/usr/bin/python3", "-IS", "-c", CHILD, *words]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.communicate()


def seen(*words: str) -> Process:
    """Return what is seen of such a process."""
    with child(*words) as pid:
        found = read_process(pid, read_sockets("self"))
    assert found is not None
    return found


def test_an_open_process_is_seen(role: Role) -> None:
    """Of a process of one's own everything is seen, and it is what we know of it."""

    @role.run
    def _() -> None:
        found = seen()
        assert (found.parent, found.uids, found.gids) == (
            os.getpid(),
            (os.geteuid(),) * 4,
            (os.getegid(),) * 4,
        )
        assert found.program.startswith("/usr/bin/python3")
        assert found.argv[:3] == (b"/usr/bin/python3", b"-IS", b"-c")
        assert found.hidden == ()
        assert found.files is not None
        assert [file.number for file in found.files] == [0, 1, 2]
        assert found.pss_kib is not None
        assert found.rss_kib > found.pss_kib > 0
        assert set(found.namespaces) == set(NAMESPACES)
        assert found.namespaces["net"] == os.stat("/proc/self/ns/net").st_ino
        assert any(mount.path == "/" for mount in found.mounts)


def test_dumpable_is_told(role: Role) -> None:
    """A process that has closed itself is told from one that has not; where that cannot be told, nothing is claimed."""

    @role.run
    def _() -> None:
        assert seen("bare").dumpable is True
        assert seen("bare", "closed").dumpable is False
        # One of root's with all capabilities may be looked into by its equals in any case.
        assert seen("closed").dumpable is (None if os.geteuid() == 0 else False)


def test_what_is_closed_is_named(role: Role) -> None:
    """An ordinary user reads ids, rights and filters of a closed process, and is told what else there would be."""

    @role.run
    def _() -> None:
        found = seen("closed", "filter")
        own = seen()
        assert (found.uids, found.no_new_privs, found.seccomp) == ((os.geteuid(),) * 4, True, 2)
        assert found.filters == own.filters + 1
        if os.geteuid() == 0:
            assert found.hidden == ()
        else:
            assert found.hidden == ("namespaces", "program file", "open files", "shared memory")
            assert (found.files, found.program, found.namespaces) == (None, "", {})


def test_the_weakest_thread_counts() -> None:
    """A filter that one of two threads has not is none."""
    plain = seen()
    alone, beside = seen("filter"), seen("thread", "filter")
    assert (alone.filters, alone.no_new_privs, alone.threads) == (plain.filters + 1, True, 1)
    assert (beside.filters, beside.no_new_privs, beside.threads) == (plain.filters, False, 2)


def test_files_and_sockets_are_named() -> None:
    """A file is shown with its path, a socket with its kind, and each with what may be done with it."""
    files = seen("files").files
    assert files is not None
    assert files[3].target.startswith("unix stream socket @line")
    # Its name has more lines, which look like others of the kernel's table.
    assert sorted((file.target, file.access) for file in files[4:]) == [
        ("/etc/passwd", "r"),
        ("tcp socket", "rw"),
        ("unix stream socket", "rw"),
        ("unix stream socket", "rw"),
    ]


def test_what_has_ended_is_not_seen() -> None:
    """Neither a process that is gone nor one that is not reaped yet, nor a number that never was one's."""
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert process.pid not in descendants(os.getpid())
        assert read_process(process.pid, {}) is None
        assert start_time(process.pid) is not None
    assert start_time(process.pid) is None
    assert read_process(process.pid, {}) is None
    assert read_process(1 << 22, {}) is None


def test_nobody_hides_behind_a_thread_that_ended() -> None:
    """A process whose first thread has ended looks like a zombie: it is found, and not taken for one that is gone."""
    with child("headless") as pid:
        assert pid in descendants(os.getpid())
        with pytest.raises(OSError, match=f"/proc/{pid}"):
            read_process(pid, {})


def test_a_process_is_told_by_its_start() -> None:
    """Every process has a start that does not change."""
    with child() as first, child() as second:
        assert start_time(first) == start_time(first)
        assert first in descendants(os.getpid())
        assert descendants(second) == (second,)
