"""A real agent over Unix sockets, without a machine: it mounts nothing and runs programs as the caller."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cloche.guest.session import AgentSession
from cloche.host.reactor import Reactor
from cloche.host.tools import require_own_binary
from cloche.model.guest import GuestCommand

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cloche.errors import ClocheError
    from cloche.guest.job import Job
    from cloche.guest.session import Sink, Source

#: How long a test waits for something that must happen before it fails.
PATIENCE_S = 60.0
ENVIRONMENT = (b"PATH=/usr/local/bin:/usr/bin:/bin", b"LC_ALL=C")

#: Carries bytes between connections to a listening descriptor and the agent's socket, and cuts both at random moments.
_CUTTER = """
import os, random, select, socket, sys
path, seed, mean = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(seed)
listener = socket.socket(fileno=int(sys.argv[4]))
while True:
    near = listener.accept()[0]
    far = socket.socket(socket.AF_UNIX)
    far.connect(path)
    left = chance.randint(1, 2 * mean)
    peer = {near: far, far: near}
    while left > 0:
        for end in select.select([near, far], [], [])[0]:
            data = end.recv(min(262144, left))
            left = left - len(data) if data else 0
            try:
                peer[end].sendall(data)
            except OSError:
                left = 0
            if left <= 0:
                break
    near.close()
    far.close()
"""


def shell(script: str) -> GuestCommand:
    """The caller's /bin/sh with a script."""
    return command("/bin/sh", "-c", script)


def command(*argv: str | bytes) -> GuestCommand:
    """A program run as the caller, in /."""
    words = tuple(os.fsencode(word) for word in argv)
    return GuestCommand(words, ENVIRONMENT, b"/", os.getuid(), os.getgid(), tuple(os.getgroups()))


class Guest:
    """A session with an agent, and what a test does with it."""

    def __init__(self, reactor: Reactor, path: str) -> None:
        self.reactor = reactor
        self.path = path
        self.lost: list[ClocheError] = []
        self.session = AgentSession(reactor, self.connect)
        self.session.on_lost = self.lost.append

    def connect(self) -> socket.socket:
        """A connection to the agent (or to what stands before it)."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(self.path)
        except OSError:
            connection.close()
            raise
        return connection

    def start(
        self, what: GuestCommand, *, stdin: Source = None, stdout: Sink = None, stderr: Sink = None
    ) -> Job:
        """Start a program."""
        return self.session.exec(what, stdin=stdin, stdout=stdout, stderr=stderr)

    def wait(self, job: Job, timeout: float = PATIENCE_S) -> int:
        """Wait until it is done; returns its status."""
        assert self.reactor.run_until(lambda: job.done or bool(self.lost), timeout), "the job did not end"
        assert not self.lost, self.lost[0].message
        assert job.failure is None, job.failure_text
        assert job.status is not None
        return job.status

    def run(self, what: GuestCommand, data: bytes | None = None) -> tuple[int, bytes, bytes]:
        """Run a program to its end: status, stdout, stderr."""
        out, err = bytearray(), bytearray()
        job = self.start(what, stdin=data, stdout=out.extend, stderr=err.extend)
        return self.wait(job), bytes(out), bytes(err)


@contextmanager
def agent(directory: Path) -> Iterator[str]:
    """An agent that listens; yields its socket's path."""
    path = str(directory / "agent.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        process = subprocess.Popen(
            [require_own_binary("cloche-agent"), "--listen-fd", str(listener.fileno())],
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
        )
    try:
        yield path
    finally:
        process.kill()
        process.wait()


@contextmanager
def cutter(directory: Path, path: str, *, mean: int, seed: int = 1) -> Iterator[str]:
    """A proxy that cuts connections to ``path`` after about ``mean`` bytes; yields its own socket's path."""
    own = str(directory / "cutter.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(own)
        listener.listen()
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _CUTTER, path, str(seed), str(mean), str(listener.fileno())],
            pass_fds=[listener.fileno()],
        )
    try:
        yield own
    finally:
        process.kill()
        process.wait()


@contextmanager
def guest(path: str) -> Iterator[Guest]:
    """An attached session with the agent at ``path``."""
    with Reactor() as reactor:
        made = Guest(reactor, path)
        made.session.attach()
        assert reactor.run_until(lambda: made.session.ready is not None, PATIENCE_S)
        try:
            yield made
        finally:
            made.session.close()
