"""Images of disks, for tests."""

from __future__ import annotations

import struct
import uuid
import zlib


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


def backed_qcow2(size_bytes: int, backing: bytes) -> bytes:
    """Return an image of a disk that is another file where nothing was written to it."""
    image = bytearray(empty_qcow2(size_bytes))
    place = 4096
    image[place : place + len(backing)] = backing
    struct.pack_into(">QI", image, 8, place, len(backing))
    return bytes(image)


def gpt(content: bytes, number: int = 2) -> bytes:
    """Return a disk with a GUID partition table (UEFI 2.10, 5.3), one of whose partitions holds the content."""
    first, sector = 2048, 512
    last = first + -(-len(content) // sector) - 1
    sectors = last + 34
    entry = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4").bytes_le + bytes([number]) * 16
    entry += struct.pack("<QQQ", first, last, 0)
    entries = (bytes(128 * (number - 1)) + entry.ljust(128, b"\0")).ljust(128 * 128, b"\0")

    def header(here: int, other: int, table: int) -> bytes:
        def fields(checksum: int) -> bytes:
            return struct.pack(
                "<8sIIIIQQQQ16sQIII",
                *(b"EFI PART", 0x10000, 92, checksum, 0, here, other, 34, sectors - 34, b"g" * 16),
                *(table, 128, 128, zlib.crc32(entries)),
            )

        return fields(zlib.crc32(fields(0))).ljust(sector, b"\0")

    protective = bytes(446) + struct.pack("<B3sB3sII", 0, bytes(3), 0xEE, bytes(3), 1, sectors - 1)
    begin = protective.ljust(510, b"\0") + b"\x55\xaa" + header(1, sectors - 1, 2) + entries
    end = entries + header(sectors - 1, 1, sectors - 33)
    return begin.ljust(first * sector, b"\0") + content.ljust((last + 1 - first) * sector, b"\0") + end
