"""How a warden is started: what it inherits, and what it refuses."""

from __future__ import annotations

import os
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from cloche.errors import HostError
from cloche.host.warden import Warden
from support.wardens import PATIENCE_S, ROLES, Role, domain, make_role

if TYPE_CHECKING:
    from support.users import OrdinaryUser


@pytest.fixture(params=ROLES)
def role(request: pytest.FixtureRequest, ordinary: OrdinaryUser) -> Role:
    """Provide root and an ordinary user, one after the other."""
    return make_role(request.param, ordinary)


def test_the_warden_inherits_nothing_but_its_socket(role: Role) -> None:
    """Descriptors that were left inheritable by mistake are closed by the warden."""

    @role.run
    def _() -> None:
        reader, writer = os.pipe()
        os.set_inheritable(writer, True)
        with domain(role.warden):
            os.close(writer)
            assert os.read(reader, 1) == b""


def test_a_missing_warden_is_a_host_error() -> None:
    """A binary that is not there raises at once and leaves no descriptor open."""
    before = os.listdir("/proc/self/fd")
    with pytest.raises(HostError, match=r"cannot start /no/such: No such file"):
        Warden.start("/no/such")
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("kind", [None, socket.SOCK_STREAM])
def test_started_without_its_socket_it_refuses(role: Role, kind: socket.SocketKind | None) -> None:
    """Without a SOCK_SEQPACKET socket as descriptor 3 the warden says so and exits with 125."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind or socket.SOCK_STREAM)
    with ours, theirs:
        script = 'exec "$0" 3>&-' if kind is None else f'exec "$0" 3<&{theirs.fileno()}'
        argv = ["/bin/bash", "-c", script, role.warden]
        keep = [theirs.fileno()]
        done = subprocess.run(argv, capture_output=True, check=False, pass_fds=keep, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"descriptor 3 must be a SOCK_SEQPACKET Unix socket" in done.stderr
