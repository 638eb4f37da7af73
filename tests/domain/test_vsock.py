"""Sockets between real guests and programs of the host: both ways, many at once, and what dies with what."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import stat
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.domains import domain_processes, kill_part
from support.errors import check_error
from support.vhost import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.runs import Runner

HOST_CID = 2
PORT, ECHO_PORT, LOST_PORT = 4000, 4001, 4002

#: A program of the guest: sends everything back to whoever connects, many at once, each until its end.
ECHO = f"""
import socket, threading
def serve(connection):
    with connection:
        while piece := connection.recv(1 << 16):
            connection.sendall(piece)
with socket.socket(socket.AF_VSOCK) as door:
    door.bind((socket.VMADDR_CID_ANY, {PORT}))
    door.listen(64)
    print("ready", flush=True)
    while True:
        threading.Thread(target=serve, args=(door.accept()[0],), daemon=True).start()
"""

#: Another: sends bytes that are easily made again, and says what it has sent; then as many streams at once.
SENDER = f"""
import hashlib, random, socket, sys
def connect(port):
    stream = socket.socket(socket.AF_VSOCK)
    stream.connect(({HOST_CID}, port))
    return stream
total, made = hashlib.sha256(), random.Random(7)
with connect({ECHO_PORT}) as stream:
    for number in range(int(sys.argv[1])):
        piece = made.randbytes(1 << 16)
        total.update(piece)
        stream.sendall(piece)
    stream.shutdown(socket.SHUT_WR)
    print(total.hexdigest(), stream.recv(100).decode(), flush=True)
try:
    connect({LOST_PORT})
except OSError as error:
    print(type(error).__name__, flush=True)
many = [connect({ECHO_PORT}) for _ in range(50)]
for number, stream in enumerate(many):
    stream.sendall(b"%d" % number)
    stream.shutdown(socket.SHUT_WR)
print(all(s.recv(100) == hashlib.sha256(b"%d" % n).hexdigest().encode() for n, s in enumerate(many)), flush=True)
"""


@pytest.fixture(params=["ordinary", "caller"])
def runner(request: pytest.FixtureRequest) -> Runner:
    """Provide cloche as an ordinary user and as whoever runs the tests."""
    found: Runner = request.getfixturevalue("cloche" if request.param == "ordinary" else "cloche_as_caller")
    return found


def knock(path: Path, port: int = PORT) -> socket.socket:
    """Connect to a port of the guest's; return the stream once the guest has accepted."""
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(PATIENCE_S)
    stream.connect(str(path))
    stream.sendall(b"CONNECT %d\n" % port)
    line = b""
    while not line.endswith(b"\n"):
        piece = stream.recv(1)
        if not piece:
            stream.close()
            raise ConnectionRefusedError(port)
        line += piece
    assert line.startswith(b"OK ")
    return stream


@contextmanager
def digests(path: Path, owner: tuple[int, int]) -> Iterator[None]:
    """Listen as a program of the host's does: tells each who connects the checksum of what they have sent."""
    door = socket.socket(socket.AF_UNIX)
    door.bind(str(path))
    os.chown(path, *owner)
    door.listen(64)

    def serve(stream: socket.socket) -> None:
        total = hashlib.sha256()
        with stream:
            while piece := stream.recv(1 << 16):
                total.update(piece)
            stream.sendall(total.hexdigest().encode())

    def accept() -> None:
        while True:
            try:
                stream = door.accept()[0]
            except OSError:
                return
            threading.Thread(target=serve, args=(stream,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield
    finally:
        door.shutdown(socket.SHUT_RDWR)
        door.close()
        thread.join()


def ids(runner: Runner) -> tuple[int, int]:
    """Return whose runner it is."""
    return runner.user.entry.pw_uid, runner.user.entry.pw_gid


def guest_program(source: str, *words: str) -> tuple[str, ...]:
    """Return the words of a program in Python."""
    return ("/usr/bin/python3", "-c", source, *words)


def test_streams_go_both_ways(runner: Runner, folder: Path) -> None:
    """200 MB from the guest arrive as they were sent, many streams at once do not mix, and nobody is nobody."""
    path = folder / "sockets"
    with digests(Path(f"{path}_{ECHO_PORT}"), ids(runner)):
        done = runner(
            "run", f"--vsock={path}", "--", *guest_program(SENDER, str(200_000_000 >> 16)), timeout=600
        )
    total, made = hashlib.sha256(), random.Random(7)
    for _ in range(200_000_000 >> 16):
        total.update(made.randbytes(1 << 16))
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().split("\n") == [
        f"{total.hexdigest()} {total.hexdigest()}",
        "ConnectionResetError",
        "True",
        "",
    ]
    assert not path.exists()


def test_programs_of_the_host_connect(runner: Runner, folder: Path) -> None:
    """Ports that listen are reached by name of a socket that is the caller's alone, many at once; others refuse.

    However the domain ends, its socket is gone; the audit finds the process held; and it cannot be saved.
    """
    path = folder / "sockets"
    plan = runner("run", "--dry-run", f"--vsock={path}", "true").stdout.decode()
    assert "cold: vhost-user-vsock" in plan
    assert "saveable    no: vhost-user-vsock" in plan
    assert not path.exists()
    name = f"door-{os.getpid()}"
    words = ("run", f"--vsock={path}", "--share-later", "--name", name)
    with runner.popen(*words, "--", *guest_program(ECHO)) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        mode = path.stat()
        assert (stat.S_IMODE(mode.st_mode), mode.st_uid) == (0o600, ids(runner)[0])
        sent = random.Random(3).randbytes(4 << 20)
        with knock(path) as stream:
            threading.Thread(target=stream.sendall, args=(sent,), daemon=True).start()
            got = bytearray()
            while len(got) < len(sent):
                got += stream.recv(1 << 16)
            assert bytes(got) == sent
        many = [knock(path) for _ in range(40)]
        for number, stream in enumerate(many):
            stream.sendall(b"%d" % number)
        for number, stream in enumerate(many):
            assert stream.recv(100) == b"%d" % number
            stream.close()
        with pytest.raises(ConnectionRefusedError):
            knock(path, LOST_PORT)
        check_error(runner("run", f"--vsock={path}", "true"), 125, "cannot listen at")
        check_error(runner("share", "add", name, f"{folder}:rw"), 125, "the guest can write there")
        audit = runner("audit", name)
        assert audit.returncode == 0, audit.stdout
        assert b"vsock" in audit.stdout
        # It ends with its process, with the reason.
        kill_part(running.pid, "cloche-vsock")
        assert running.wait(PATIENCE_S) == 125
        assert running.stderr is not None
        assert b"its process vsock was killed by signal 9" in running.stderr.read()
    assert not path.exists()


def test_a_socket_that_was_left_is_swept(cloche: Runner, folder: Path) -> None:
    """Where a supervisor was killed its socket goes with the next command, and what has come in its place does not."""
    path = folder / "sockets"
    for is_replaced in (False, True):
        with cloche.popen("run", f"--vsock={path}", "--", *guest_program(ECHO)) as running:
            assert running.stdout is not None
            assert running.stdout.readline() == b"ready\n"
            below = domain_processes(running.pid)
            running.kill()
        for pid in below:
            while Path(f"/proc/{pid}").exists():
                os.sched_yield()
        assert path.is_socket()
        if is_replaced:
            path.unlink()
            path.write_text("mine")
        # Whatever the socket, the next domain does not stumble over it.
        if not is_replaced:
            assert cloche("run", f"--vsock={path}", "--", "true").returncode == 0
            assert not path.exists()
        else:
            assert cloche("true").returncode == 0
            assert path.read_text() == "mine"


def test_what_cannot_be_is_refused(cloche: Runner, folder: Path) -> None:
    """A directory that is not there, other arrangements, and a place where the guest could make names itself."""
    check_error(cloche("run", "--vsock=/nowhere/x", "true"), 125, "cannot listen at /nowhere/x")
    check_error(cloche("run", f"--vsock={folder}/", "true"), 125, "names no socket")
    check_error(cloche("run", f"--vsock={folder}/x", "--devices=vmm", "true"), 125, "cannot do --vsock")
    check_error(
        cloche("run", f"--vsock={folder}/x", f"--share={folder}:rw", "true"), 125, "the guest can write there"
    )
    assert cloche("run", "--dry-run", f"--vsock={folder}/x", f"--share={folder}", "true").returncode == 0
