"""A vhost-user device that offers everything saving needs, and does nothing: for what QEMU itself refuses."""

from __future__ import annotations

import os
import socket
import struct
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from support.vhost import (
    GET_CONFIG,
    GET_FEATURES,
    GET_PROTOCOL_FEATURES,
    GET_QUEUE_NUM,
    GET_VRING_BASE,
    LOG_ALL,
    P_CONFIG,
    P_LOG_SHMFD,
    P_MQ,
    P_STATE,
    PROTOCOL_FEATURES,
    SET_LOG_BASE,
    VERSION_1,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_QUEUES = 8
_REPLY = 5
_NUMBERS = {
    GET_FEATURES: VERSION_1 | LOG_ALL | PROTOCOL_FEATURES,
    GET_PROTOCOL_FEATURES: 1 << P_MQ | 1 << P_LOG_SHMFD | 1 << P_CONFIG | 1 << P_STATE,
    GET_QUEUE_NUM: _QUEUES,
}
#: What is in front of the bytes of a device's configuration: offset, size, flags.
_CONFIG_HEAD = 12


@contextmanager
def stand_in(path: Path, config: bytes) -> Iterator[None]:
    """Provide a device that listens at ``path`` for one VMM (in a thread).

    Args:
        path: Of its socket.
        config: The fields of the device's configuration.
    """
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=_serve, args=(listener, config))
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _serve(listener: socket.socket, config: bytes) -> None:
    with suppress(OSError):  # nobody came, or the VMM was ended in the middle of a message
        connection = listener.accept()[0]
        with connection:
            while _answer(connection, config):
                pass


def _answer(connection: socket.socket, config: bytes) -> bool:
    head, fds, _, _ = socket.recv_fds(connection, 12, 8)
    for fd in fds:
        os.close(fd)
    if len(head) < 12:
        return False
    request, _, size = struct.unpack("<III", head)
    payload = connection.recv(size, socket.MSG_WAITALL) if size else b""
    if request in _NUMBERS:
        payload = struct.pack("<Q", _NUMBERS[request])
    elif request == GET_VRING_BASE:
        payload = struct.pack("<II", struct.unpack_from("<I", payload)[0], 0)
    elif request == GET_CONFIG:
        payload = payload[:_CONFIG_HEAD] + config.ljust(size - _CONFIG_HEAD, b"\0")
    elif request == SET_LOG_BASE:
        payload = b""
    else:
        return True
    connection.sendall(struct.pack("<III", request, _REPLY, len(payload)) + payload)
    return True
