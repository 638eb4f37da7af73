"""A profile's directory as far as undo logs see it, with runs that change its disk at random."""

from __future__ import annotations

import os
import random
import struct
from typing import TYPE_CHECKING

from cloche.host import reverting, undo, undolog
from cloche.host.undolog import HEADER, RECORD, Saved
from cloche.model.profile import KEPT_STARTS
from support import vhost
from support.vhost import NEXT, WRITABLE, Descriptor, Frontend

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Bytes of the disk: some clusters, and a part of one.
SIZE = (1 << 20) + 12 * 512
_HEADER, _STATUS, _DATA = 0x10_0000, 0x20_0000, 0x30_0000
_OUT, _DISCARD = 1, 11
_FEATURES = 1 << 9 | 1 << 13 | 1 << 14


class Profile:
    """A directory with a disk.

    Attributes:
        path: The directory.
        image: The disk.
        after: What the disk held after each run.
    """

    def __init__(self, path: Path) -> None:
        """Make a disk with data and holes."""
        self.path = path
        self.image = path / "disk.img"
        self.after: list[bytes] = []
        pick = random.Random(3)
        with open(self.image, "wb") as file:
            file.truncate(SIZE)
            for _ in range(40):
                file.seek(pick.randrange(SIZE // 4096) * 4096)
                file.write(pick.randbytes(4096))

    def content(self) -> bytes:
        """Return what is on the disk."""
        return self.image.read_bytes()

    def run(self, seed: int, keep: int = KEPT_STARTS, most: int | None = None, *, seal: bool = True) -> bytes:
        """Let a disk's process change something; return what was there before."""
        before = self.content()
        begun = undo.begin(str(self.path), len(before), keep)
        assert begun is not None
        undo.secure(begun)
        pick = random.Random(seed)
        with open(begun.path, "r+b") as log, open(self.image, "r+b") as file:
            fds = (file.fileno(), log.fileno())
            words = (
                "--image-fd",
                str(fds[0]),
                "--undo-fd",
                str(fds[1]),
                "--undo-bytes",
                str(most or begun.most_bytes),
            )
            with vhost.device("cloche-disk", *words, pass_fds=fds) as running:
                frontend = Frontend(running.connection, 1)
                frontend.shake_hands(_FEATURES)
                for _ in range(12):
                    sector = pick.randrange(SIZE // 512 - 128)
                    if pick.random() < 0.7:
                        _ask(frontend, _OUT, sector, pick.randbytes(512 * pick.randrange(1, 128)))
                    else:
                        _ask(frontend, _DISCARD, 0, struct.pack("<QII", sector, pick.randrange(1, 128), 0))
                frontend.close()
                assert running.process.wait(vhost.PATIENCE_S) == 0
        if seal:
            undo.settle(str(self.path))
        self.after.append(self.content())
        return before

    def revert(self, number: int | None = None) -> undo.Start:
        """Go back to a start."""
        return reverting.revert(str(self.path), str(self.image), number)

    def change_boot(self, number: int, boot: bytes) -> None:
        """Let the log of a start be of another boot of the host."""
        fd = os.open(self.path / "undo" / f"{number:08}", os.O_RDWR)
        undolog.write_header(fd, undolog.read_header(fd)._replace(boot=boot))
        os.close(fd)

    def trusting(self, fd: int, header: undolog.Header, end: int) -> Iterator[Saved]:
        """Go through a log as somebody would who believes all of it."""
        del header
        at = HEADER
        while at < end:
            _, mask, cluster, _, _ = struct.unpack("<HHIII", os.pread(fd, RECORD, at))
            if cluster < -(-SIZE // undolog.CLUSTER):
                yield Saved(cluster, mask, at + RECORD)
            at += RECORD + mask.bit_count() * undolog.PAGE


def _ask(frontend: Frontend, kind: int, sector: int, data: bytes) -> None:
    frontend.memory[_HEADER : _HEADER + 16] = struct.pack("<IIQ", kind, 0, sector)
    frontend.memory[_DATA : _DATA + len(data)] = data
    parts = ((_HEADER, 16, NEXT), (_DATA, len(data), NEXT), (_STATUS, 1, WRITABLE))
    for index, (address, length, flags) in enumerate(parts):
        frontend.put_descriptor(index, Descriptor(address, length, flags, index + 1), 0)
    frontend.memory[_STATUS] = 0xEE
    frontend.offer(0, 0)
    frontend.wait(0)
    assert frontend.memory[_STATUS] == 0
