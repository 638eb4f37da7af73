"""Images of disks, for tests."""

from __future__ import annotations

import struct

_CLUSTER = 1 << 16


def empty_qcow2(size_bytes: int) -> bytes:
    """Return an image of an empty disk of at most 512 MiB: version 3, no backing file, clusters of 64 KiB."""
    # The header, then one cluster each of refcount table, refcount block and L1 table.
    header = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", 3, 0, 0, 16, size_bytes, 0, 1, 3 * _CLUSTER, _CLUSTER, 1, 0, 0
    )
    header += struct.pack(">QQQII", 0, 0, 0, 4, 104)
    table = struct.pack(">Q", 2 * _CLUSTER)
    block = struct.pack(">4H", 1, 1, 1, 1)
    return b"".join(part.ljust(_CLUSTER, b"\0") for part in (header, table, block, b""))
