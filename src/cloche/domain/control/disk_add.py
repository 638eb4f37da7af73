"""The request that gives a running domain another disk (layer 5)."""

from __future__ import annotations

from cloche.domain.control.life import Nothing
from cloche.domain.control.wire import read_flag, read_text, write_text
from cloche.model.request import Disk
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.domain.launcher import Launcher
    from cloche.errors import ClocheError
    from cloche.host.codec import Reader, Writer


class DiskAdd(Record):
    """Give the guest this disk."""

    disk: Disk

    @property
    def name(self) -> str:
        """Its name on the wire."""
        return "disk-add"

    def write(self, writer: Writer) -> None:
        """Put the fields one after the other."""
        for text in (self.disk.tag, self.disk.path, self.disk.format):
            write_text(writer, text)
        writer.u8(self.disk.writable)
        writer.u8(self.disk.most_bytes is not None)
        writer.u64(self.disk.most_bytes or 0)

    @classmethod
    def read(cls, reader: Reader) -> DiskAdd:
        """Take the fields out again."""
        tag, path, kind = read_text(reader), read_text(reader), read_text(reader)
        writable, is_bounded, most = read_flag(reader), read_flag(reader), reader.u64()
        return cls(Disk(tag, path, kind, writable, most if is_bounded else None))

    def serve(
        self,
        launcher: Launcher,
        fds: list[int],
        answer: Callable[[Nothing], None],
        fail: Callable[[ClocheError], None],
    ) -> None:
        """Carry it out."""
        del fds
        from cloche.domain.adding import add_disk

        add_disk(launcher, self.disk, lambda: answer(Nothing()), fail)
