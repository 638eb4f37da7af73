"""Reading ``--disk``, and where disks are in the guest (layer 2, pure; the host's view comes from ``host.paths``)."""

from __future__ import annotations

from cloche.errors import DiskError, UsageError
from cloche.model.guest import MakeSymlink, Mkdir, WaitPath
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from cloche.model.guest import Step
    from cloche.model.request import Disk

#: The length of a virtio disk's serial number (virtio 1.2, 5.2.6: VIRTIO_BLK_ID_BYTES).
MAX_TAG = 20
BY_TAG = b"/dev/disk/by-tag"
FORMATS = ("raw", "qcow2")

#: The beginning of a qcow2 image that says how large its disk is.
QCOW2_HEAD = 32
QCOW2_MAGIC = b"QFI\xfb"
#: Sixteen of the largest clusters, for tables that every image has.
_QCOW2_ROOM = 16 * (2 << 20)
#: The largest file there can be.
_LARGEST = (1 << 63) - 1

_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
_FORM = "Write TAG=FILE, TAG=FILE,ro, TAG=FILE,format=qcow2 or TAG=size:SIZE."
#: Instead of a file: a new, empty one of this size.
_EMPTY = "size:"
#: The beginning of tags that images of mounts have.
MOUNT_TAG = "mount."
#: How long the guest's kernel may take to name a disk, in milliseconds.
_APPEARS_MS = 20_000


class DiskWord(Record):
    """``TAG=FILE[,format=FORMAT][,ro]`` or ``TAG=size:SIZE`` taken apart; with a size there is no path."""

    tag: str
    path: str
    format: str = "raw"
    writable: bool = True
    size_bytes: int = 0


def parse_disk(word: str) -> DiskWord:
    """Read the argument of ``--disk``.

    The options are taken from the right, so that a file's name may hold commas.

    Raises:
        UsageError: It is malformed.
    """
    if "\0" in word:
        raise UsageError(f"--disk {word!r} holds a NUL byte, which no name can")
    tag, separator, path = word.partition("=")
    if not separator:
        raise UsageError(f"--disk {word!r} is not of the form TAG=FILE", hint=_FORM)
    if not 1 <= len(tag) <= MAX_TAG or not set(tag) <= _LETTERS or tag in (".", ".."):
        raise UsageError(
            f"--disk {word!r}: {tag!r} cannot be a tag",
            hint=f"A tag has 1 to {MAX_TAG} letters, digits, dots, underscores and hyphens.",
        )
    kind, writable = None, True
    while True:
        head, separator, tail = path.rpartition(",")
        if separator and tail == "ro" and writable:
            path, writable = head, False
        elif separator and tail.startswith("format=") and kind is None:
            path, kind = head, tail[7:]
        else:
            break
    if kind is not None and kind not in FORMATS:
        raise UsageError(f"--disk {word!r}: there is no format {kind!r}", hint="There are raw and qcow2.")
    if not path:
        raise UsageError(f"--disk {word!r} names no file", hint=_FORM)
    if tag.startswith(MOUNT_TAG):
        raise UsageError(
            f"--disk {word!r}: tags that begin with {MOUNT_TAG} are those of mounts",
            hint="Choose another tag.",
        )
    if path.startswith(_EMPTY):
        from cloche.plan.sizes import parse_size_bytes

        if not writable or kind:
            raise UsageError(f"--disk {word!r}: an empty disk is raw and can be written to", hint=_FORM)
        return DiskWord(tag, "", size_bytes=parse_size_bytes(path[len(_EMPTY) :], f"--disk {word!r}"))
    return DiskWord(tag, path, kind or "raw", writable)


def bound_growth(kind: str, size_bytes: int, head: bytes) -> int:
    """Return the largest size that the file of a disk needs, in bytes.

    A raw file never changes its size. A qcow2 file can get a new cluster for each of the disk's, beside what it
    holds now (snapshots, clusters that were lost), and the tables for them: with the smallest clusters (512 bytes)
    and the widest entries L2 tables and reference counts take 1/64 each, and less than 1/28 with the tables for the
    tables; the rest of 1/8 is for tables that are moved and for clusters lost when a process was killed.

    Args:
        kind: How the disk's bytes are kept.
        size_bytes: The file's size now.
        head: Its first QCOW2_HEAD bytes: magic, version, backing file, cluster bits, and the disk's size at 24
            (docs/interop/qcow2.txt of QEMU).
    """
    if kind == "raw" or len(head) < QCOW2_HEAD or head[:4] != QCOW2_MAGIC:
        return size_bytes
    disk_bytes = int.from_bytes(head[24:32], "big")
    return min(size_bytes + disk_bytes + disk_bytes // 8 + _QCOW2_ROOM, _LARGEST)


def check_disks(disks: tuple[Disk, ...], most: int) -> None:
    """Look whether a machine can have these disks.

    Raises:
        DiskError: Two have the same tag or, unless both are only read, the same file; or there are more than ``most``.
    """
    for index, disk in enumerate(disks):
        for other in disks[:index]:
            if disk.path == other.path and disk.tag != other.tag and (disk.writable or other.writable):
                raise DiskError(
                    f"the disks {other.tag} and {disk.tag} are the same file {disk.path}",
                    hint="It can be given twice if both say ,ro.",
                )
    tags = [disk.tag for disk in disks]
    for tag in tags:
        if tags.count(tag) > 1:
            raise DiskError(f"two disks are called {tag}", hint="Give one of them another tag.")
    if len(disks) > most:
        raise DiskError(
            f"the machine has room for {most} disks, not for {len(disks)}",
            hint="QEMU's microvm has eight places, and each device takes one (shares one for all, a network card one):"
            " put several file systems into partitions of one image.",
        )


def build_disk_steps(disks: tuple[Disk, ...], before: int = 0) -> list[Step]:
    """Return the steps that name the guest's disks by their tags; there are others ``before`` them.

    The kernel counts disks in the order in which it finds their transports, which is the plan's own.
    """
    steps: list[Step] = [Mkdir(BY_TAG)]
    for index, disk in enumerate(disks, before):
        device = device_name(index)
        steps.append(WaitPath(device, _APPEARS_MS))
        name = device.rpartition(b"/")[2]
        steps.append(MakeSymlink(b"../../" + name, BY_TAG + b"/" + disk.tag.encode()))
    return steps


def device_name(index: int) -> bytes:
    """Return what the guest's kernel calls a disk, by its place among the disks; more than 26 no machine has."""
    return b"/dev/vd%c" % (ord("a") + index)
