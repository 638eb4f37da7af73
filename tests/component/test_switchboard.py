"""Who a guest's sockets are connected with: by name, as the caller would, and nobody the guest or others put there."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from cloche.domain.switchboard import Switchboard, connect_in
from cloche.host.reactor import Reactor
from support.vhost import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """Listen at a path."""
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(path))
        door.listen(4)
        yield door


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    """Provide the open directory of the sockets."""
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def is_connected(directory: int, name: str) -> bool:
    """Whether somebody is found under a name."""
    stream = connect_in(directory, name)
    if stream is not None:
        stream.close()
    return stream is not None


def test_whoever_listens_is_found(tmp_path: Path, directory: int) -> None:
    """A socket with a listener is connected to; a file, nothing, a socket without one, and a full one are not."""
    (tmp_path / "v_2").write_text("")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "v_3"))
    with listening(tmp_path / "v_1") as door:
        stream = connect_in(directory, "v_1")
        assert stream is not None
        with door.accept()[0] as theirs:
            assert not stream.getblocking()
            stream.send(b"hello")
            assert theirs.recv(5) == b"hello"
        stream.close()
        assert [is_connected(directory, f"v_{port}") for port in (2, 3, 4)] == [False] * 3
        door.listen(0)
        while is_connected(directory, "v_1"):
            pass


def test_a_link_is_not_followed(tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads to another socket is nobody's; without the look at links it is connected to."""
    with listening(tmp_path / "secret"):
        (tmp_path / "v_1").symlink_to(tmp_path / "secret")
        assert not is_connected(directory, "v_1")
        monkeypatch.setattr(os, "O_NOFOLLOW", 0)
        assert is_connected(directory, "v_1")


def test_the_directory_is_the_one_of_the_start(tmp_path: Path) -> None:
    """Renamed, with another in its place, it stays the one; by its path, the other would be looked into."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    fd = os.open(first, os.O_PATH | os.O_DIRECTORY)
    with listening(second / "v_1"):
        first.rename(tmp_path / "old")
        first.symlink_to(second)
        assert not is_connected(fd, "v_1")
        other = os.open(first, os.O_PATH | os.O_DIRECTORY)
        assert is_connected(other, "v_1")
    os.close(fd)
    os.close(other)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_users_socket_is_not_connected_to(
    tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever listens is the caller or root; where that is not looked at, another user is connected to."""
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(tmp_path / "v_1"))
        # Whose it is, is who calls listen.
        os.seteuid(12345)
        try:
            door.listen()
        finally:
            os.seteuid(0)
        assert not is_connected(directory, "v_1")
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        assert is_connected(directory, "v_1")


def test_a_port_is_answered(tmp_path: Path) -> None:
    """A question that comes in pieces is answered: with a stream, or with none; after the device's end it is over."""
    reactor = Reactor()
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE_S)
    before = len(os.listdir("/proc/self/fd"))
    board = Switchboard(reactor, ours, str(tmp_path / "v"))
    with listening(tmp_path / "v_258") as door:
        for piece in (b"\2", b"\1\0\0", b"\0\1\0\0"):
            theirs.send(piece)
            reactor.run_once()
        word, fds, _, _ = socket.recv_fds(theirs, 1, 2)
        assert (word, len(fds)) == (b"\1", 1)
        with socket.socket(fileno=fds[0]) as stream, door.accept()[0] as heard:
            stream.send(b"x")
            assert heard.recv(1) == b"x"
        assert socket.recv_fds(theirs, 1, 2)[:2] == (b"\0", [])
    theirs.close()
    reactor.run_once()
    board.close()
    # Both ends, and the directory.
    assert len(os.listdir("/proc/self/fd")) == before - 2


def test_a_device_that_only_asks_is_left(tmp_path: Path) -> None:
    """One that was taken over and reads no answers is not listened to any more; nothing is kept for it."""
    reactor = Reactor()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    Switchboard(reactor, ours, str(tmp_path / "v"))
    with theirs:
        while ours.fileno() >= 0:
            with suppress(BlockingIOError):
                theirs.send(b"\0\0\0\0" * 64)
            reactor.run_once()
