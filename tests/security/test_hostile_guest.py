"""A guest that sends frames under another's address: held back by the front's check, and let out without it."""

from __future__ import annotations

import os
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from setuplib import cargo, rust
from support import vhost
from support.frames import receive_frame
from support.vhost import PATIENCE_S, Descriptor, Frontend

if TYPE_CHECKING:
    from pathlib import Path

MAC = "02:00:00:00:00:01"
OWN, OTHER = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
SEND, PLACE = 1, 0x10_0000


@pytest.fixture(scope="module")
def unchecked(project: Path) -> str:
    """Return a build of the front that lets frames out whoever is named as their sender."""
    found = cargo.find()
    assert found is not None, "there is no cargo; `make setup` installs one"
    target = project / "target" / "mutants"
    words = ["--package", "cloche-net", "--features", "cloche-net/mutant-any-source", "--target", rust.TARGET]
    subprocess.run(
        # For release: a build for debugging makes calls that the front's own filter does not allow.
        [found.path, "build", "--locked", "--quiet", "--release", *words, "--target-dir", str(target)],
        cwd=project,
        env={**os.environ, **cargo.environment(found), "RUSTFLAGS": rust.flags()},
        check=True,
    )
    return str(target / rust.TARGET / "release" / "cloche-net")


def heard(program: str) -> bytes:
    """Send a frame under another's address and one of the guest's own through a front; return what comes out first."""
    peer, theirs = socket.socketpair()
    peer.settimeout(PATIENCE_S)
    words = ("--mac", MAC, "--peer-fd", str(theirs.fileno()))
    with peer, theirs, vhost.device(program, *words, pass_fds=(theirs.fileno(),)) as running:
        frontend = Frontend(running.connection, 2)
        frontend.shake_hands()
        for head, source in enumerate((OTHER, OWN)):
            frame = bytes(12) + b"\xff" * 6 + source + bytes(48)
            place = PLACE + head * 0x1000
            frontend.memory[place : place + len(frame)] = frame
            frontend.put_descriptor(head, Descriptor(place, len(frame), 0, 0), SEND)
            frontend.offer(head, SEND)
        first = receive_frame(peer)
        frontend.close()
    return first


def test_a_guest_has_one_address(unchecked: str) -> None:
    """A frame under another's address does not come out, and with a front that does not look it does."""
    assert heard("cloche-net")[6:12] == OWN
    assert heard(unchecked)[6:12] == OTHER
