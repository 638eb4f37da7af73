"""Images of disks, for tests."""

from __future__ import annotations

import struct


def empty_qcow2(size_bytes: int, cluster_bits: int = 16) -> bytes:
    """Return an image of an empty disk: version 3, no backing file, reference counts of 16 bits."""
    cluster = 1 << cluster_bits
    # An L2 table is a cluster, and has 8 bytes for each cluster of the disk.
    entries = -(-size_bytes // (cluster * cluster // 8))
    tables = -(-entries * 8 // cluster)
    # The header, then one cluster each of refcount table and refcount block, then the L1 table.
    header = struct.pack(
        ">4sIQIIQIIQQIIQ",
        *(b"QFI\xfb", 3, 0, 0, cluster_bits, size_bytes, 0),
        *(entries, 3 * cluster, cluster, 1, 0, 0),
    )
    header += struct.pack(">QQQII", 0, 0, 0, 4, 104)
    table = struct.pack(">Q", 2 * cluster)
    block = struct.pack(">H", 1) * (3 + tables)
    return b"".join(part.ljust(cluster, b"\0") for part in (header, table, block)) + bytes(tables * cluster)
