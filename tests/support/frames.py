"""Whoever listens where a guest's network card is connected to: frames, each behind its length in four bytes."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from support.vhost import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.users import OrdinaryUser

#: The guest's end of the link with a network stack at the other end (``stack``), and that end.
GUEST, STACK = "10.9.0.2", "10.9.0.1"
#: The port of the stack's service: whoever connects gets everything back that they send, and their end of it.
ECHO_PORT = 7
#: What a guest does to have a network.
BRING_UP = f"ip addr add {GUEST}/24 dev eth0; ip link set eth0 up"


def spoken(frame: bytes) -> bytes:
    """Return a frame as it stands in the stream."""
    return struct.pack(">I", len(frame)) + frame


def receive_frame(connection: socket.socket) -> bytes:
    """Receive one frame; nothing at the end of the stream."""
    head = _receive(connection, 4)
    return _receive(connection, struct.unpack(">I", head)[0]) if head else b""


def _receive(connection: socket.socket, length: int) -> bytes:
    """Receive so many bytes (on a socket with a timeout MSG_WAITALL does not wait); nothing at the end."""
    data = b""
    with suppress(ConnectionResetError):
        while len(data) < length:
            piece = connection.recv(length - len(data))
            if not piece:
                return b""
            data += piece
        return data
    return b""


@contextmanager
def listener(path: Path, user: OrdinaryUser) -> Iterator[socket.socket]:
    """Provide a socket of the user's that listens at a path."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.settimeout(PATIENCE_S)
        listening.bind(str(path))
        if user.entry.pw_uid != os.geteuid():
            os.chown(path, user.entry.pw_uid, user.entry.pw_gid)
        listening.listen()
        yield listening
    path.unlink()


@contextmanager
def echo() -> Iterator[int]:
    """Provide a descriptor behind which somebody sends every frame back to whoever it came from."""
    ours, theirs = socket.socketpair()

    def answer() -> None:
        while frame := receive_frame(ours):
            # Whoever does not take the answer has gone.
            with suppress(OSError):
                ours.sendall(spoken(frame[6:12] + frame[:6] + frame[12:]))

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        with theirs:
            yield theirs.fileno()
    finally:
        thread.join()
        ours.close()


@contextmanager
def stack(path: Path, user: OrdinaryUser) -> Iterator[None]:
    """Provide a network stack behind a socket of the user's: the kernel's own, in a namespace made for it."""
    program = Path(__file__).with_name("stack.py")
    argv = ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-I", "-S", str(program), STACK]
    with listener(path, user) as listening:
        listening.settimeout(None)
        fd = listening.fileno()
        process = subprocess.Popen([*argv, str(fd)], pass_fds=[fd], stdout=subprocess.PIPE)
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
