"""A VMM that has been taken over, and the device processes that it lies to."""

from __future__ import annotations

import socket
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from support import vhost
from support.disks import empty_qcow2
from support.vhost import DeviceProcess, Frontend, device

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Bytes of each disk.
DISK = 1 << 20
#: Program, number of queues, arguments.
DEVICES = {
    "rng": ("cloche-rng", 1, ()),
    "fs-tree": ("cloche-fs", 2, ("--cache", "forever", "--ids", "host", "--readonly")),
    "fs-share": ("cloche-fs", 2, ("--cache", "coherent", "--ids", "host")),
    "disk": ("cloche-disk", 1, ("--format", "raw")),
    "disk-qcow2": ("cloche-disk", 1, ("--format", "qcow2")),
    "net": ("cloche-net", 2, ("--mac", "02:00:00:00:00:01")),
    "vsock": ("cloche-vsock", 2, ("--cid", "3")),
}
ALL_PROTOCOL = 1 << vhost.P_MQ | 1 << vhost.P_LOG_SHMFD | 1 << vhost.P_RESET | 1 << vhost.P_SLOTS
#: How much a process may grow while it is lied to, in KiB: buffers of a request or two.
GROWTH_KIB = 4096
#: Ended because it was told to, or by its own decision with a sentence (1: bad frontend, 3: memory taken away).
HARMLESS = {0, 1, 3}


@contextmanager
def started(
    kind: str, tmp_path: Path, *more: str, built_in: Path | None = None
) -> Iterator[tuple[DeviceProcess, int]]:
    """Provide a device process of this kind, with more arguments or of another build if need be."""
    program, queues, words = DEVICES[kind]
    words = (*words, *more)
    if program == "cloche-fs":
        (tmp_path / "served").mkdir()
        words = (*words, "--root", str(tmp_path / "served"))
    with ExitStack() as stack:
        fds = []
        if program == "cloche-disk":
            image = tmp_path / "image"
            image.write_bytes(empty_qcow2(DISK) if "qcow2" in words else bytes(DISK))
            fds = [stack.enter_context(image.open("r+b")).fileno()]
            words = (*words, "--image-fd", str(fds[0]))
        if program == "cloche-net":
            # Its peer hears nothing and says nothing.
            _, theirs = (stack.enter_context(end) for end in socket.socketpair())
            fds = [theirs.fileno()]
            words = (*words, "--peer-fd", str(fds[0]))
        if program == "cloche-vsock":
            # Nobody connects; the supervisor answers nothing.
            door, _, theirs = (
                stack.enter_context(end) for end in (socket.socket(socket.AF_UNIX), *socket.socketpair())
            )
            door.bind("")
            door.listen()
            fds = [door.fileno(), theirs.fileno()]
            words = (*words, "--listen-fd", str(fds[0]), "--ask-fd", str(fds[1]))
        yield stack.enter_context(device(program, *words, pass_fds=fds, built_in=built_in)), queues


@contextmanager
def liar(
    victim: tuple[DeviceProcess, int], *, features: int = 0, protocol: int = ALL_PROTOCOL
) -> Iterator[Frontend]:
    """Provide a frontend that has been honest until now; afterwards the device must have come to no harm."""
    running, queues = victim
    frontend = Frontend(running.connection, queues)
    frontend.shake_hands(features, protocol)
    before = running.memory_kib()
    yield frontend
    assert running.memory_kib() <= before + GROWTH_KIB
    frontend.close()
    status, said = running.ended()
    assert status in HARMLESS, (status, said)
    assert "panicked" not in said
    assert "a fault in the program" not in said
    if status:
        assert said.count("\n") >= 1


def is_alive(frontend: Frontend) -> bool:
    """Whether the device still answers its frontend."""
    try:
        frontend.send(vhost.GET_FEATURES)
        return bool(frontend.receive())
    except BrokenPipeError:
        return False
