"""The sockets of a domain: they exist before any process, at paths of any length, and leave nothing behind."""

from __future__ import annotations

import os
import resource
import select
import socket
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from cloche.domain.endpoints import Endpoints
from cloche.errors import HostError
from cloche.host.rundir import RunDirectory
from cloche.model.plan import Descriptor, Endpoint, EndpointKind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ALL = (
    Endpoint("control", EndpointKind.LISTEN),
    Endpoint("system", EndpointKind.LINK),
    Endpoint("console", EndpointKind.PAIR),
)


@pytest.fixture(params=[10, 120, 3000], ids=lambda length: f"{length} bytes")
def directory(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RunDirectory]:
    """Provide a run directory below paths shorter and longer than a socket's address can be."""
    place = tmp_path
    while len(str(place)) < request.param:
        place /= "long-" * 30
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))
    made = RunDirectory.create()
    yield made
    made.close()


def descriptors() -> set[str]:
    """Return the numbers of the open descriptors."""
    return set(os.listdir("/proc/self/fd"))


def side(endpoints: Endpoints, name: str, word: str) -> socket.socket:
    """Return a copy of what a process would receive, as that process would have it."""
    return socket.socket(fileno=os.dup(endpoints.descriptor(Descriptor(name, word, 3))))


def talk(one: socket.socket, other: socket.socket) -> None:
    """Say something from each end to the other."""
    for source, target in ((one, other), (other, one)):
        source.sendall(b"hello")
        assert target.recv(5, socket.MSG_WAITALL) == b"hello"


def test_listen(directory: RunDirectory) -> None:
    """The supervisor connects to a listening socket as often as it likes, before anybody accepts."""
    endpoints = Endpoints(ALL, directory)
    first, second = endpoints.connect("control"), endpoints.connect("control")
    with side(endpoints, "control", "listen") as listener:
        endpoints.release()
        for connected in (first, second):
            accepted, _ = listener.accept()
            talk(connected, accepted)
            accepted.close()
            connected.close()
    assert os.listdir(directory.path).count("control.sock") == 1
    endpoints.close()


def test_link(directory: RunDirectory) -> None:
    """A link is connected from the start and has no path, so nobody else can ever come between."""
    endpoints = Endpoints(ALL, directory)
    assert "system.sock" not in os.listdir(directory.path)
    with side(endpoints, "system", "listen") as backend, side(endpoints, "system", "connect") as frontend:
        endpoints.release()
        accepted, _ = backend.accept()
        with accepted:
            talk(frontend, accepted)
        backend.setblocking(False)
        with pytest.raises(BlockingIOError):
            backend.accept()
    endpoints.close()


def test_pair(directory: RunDirectory) -> None:
    """A pair's one side is the supervisor's, once, the other the process's; it has no path either."""
    endpoints = Endpoints(ALL, directory)
    with closing(endpoints.connect("console")) as here, side(endpoints, "console", "there") as there:
        endpoints.release()
        talk(here, there)
    assert "console.sock" not in os.listdir(directory.path)
    with pytest.raises(OSError, match="No such file"):
        endpoints.connect("console")
    endpoints.close()


def test_the_end_of_a_process_is_an_end_of_file(directory: RunDirectory) -> None:
    """Once released, nothing of ours keeps the process's ends open: its death is seen."""
    endpoints = Endpoints(ALL, directory)
    here = endpoints.connect("console")
    there = side(endpoints, "console", "there")
    backend, frontend = side(endpoints, "system", "listen"), side(endpoints, "system", "connect")
    endpoints.release()
    for end in (there, backend):
        end.close()
    assert here.recv(1) == b""
    assert select.select([frontend], [], [], 10)[0]
    with pytest.raises(ConnectionError):
        frontend.recv(1)
        frontend.sendall(b"x")
    here.close()
    frontend.close()
    with pytest.raises(ConnectionRefusedError):
        descriptors_before = descriptors()
        try:
            endpoints.connect("control")
        finally:
            assert descriptors() == descriptors_before
    endpoints.close()


def test_nothing_stays(directory: RunDirectory) -> None:
    """Closing closes every descriptor, and the run directory takes the sockets' paths along."""
    before = descriptors()
    endpoints = Endpoints(ALL, directory)
    assert len(descriptors()) > len(before)
    endpoints.close()
    endpoints.close()
    assert descriptors() == before
    directory.close()
    assert not os.path.exists(directory.path)


def test_nothing_is_inherited(directory: RunDirectory) -> None:
    """Every descriptor is closed by an exec; processes get theirs from the warden."""
    before = descriptors()
    endpoints = Endpoints(ALL, directory)
    with closing(endpoints.connect("control")):
        for number in descriptors() - before:
            try:
                assert not os.get_inheritable(int(number)), number
            except OSError:
                continue  # the listing's own
    endpoints.close()


def test_a_directory_that_is_gone(directory: RunDirectory) -> None:
    """Sockets that cannot be made are one sentence with a hint, and leave no descriptor."""
    os.rename(directory.path, f"{directory.path}-away")
    before = descriptors()
    with pytest.raises(HostError, match="cannot make the sockets") as caught:
        Endpoints(ALL, directory)
    assert caught.value.hint
    assert descriptors() == before
    os.rename(f"{directory.path}-away", directory.path)


def test_too_few_descriptors(directory: RunDirectory) -> None:
    """Running out of descriptors in the middle closes what was opened already."""
    before = descriptors()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    top = os.dup(0)
    os.close(top)
    resource.setrlimit(resource.RLIMIT_NOFILE, (top + 3, hard))
    try:
        with pytest.raises(HostError, match="Too many open files"):
            Endpoints(ALL, directory)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert descriptors() == before
