"""The request that shares a directory with a running domain (layer 5)."""

from __future__ import annotations

from cloche.domain.control.wire import read_flag, read_text, write_text
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.domain.launcher import Launcher
    from cloche.errors import ClocheError
    from cloche.host.codec import Reader, Writer


class ShareAdd(Record):
    """Show the directory behind the one descriptor at ``target`` in the guest."""

    target: str
    writable: bool

    @property
    def name(self) -> str:
        """Its name on the wire."""
        return "share-add"

    def write(self, writer: Writer) -> None:
        """Put the fields one after the other."""
        write_text(writer, self.target)
        writer.u8(self.writable)

    @classmethod
    def read(cls, reader: Reader) -> ShareAdd:
        """Take the fields out again."""
        return cls(read_text(reader), read_flag(reader))

    def serve(
        self,
        launcher: Launcher,
        fds: list[int],
        answer: Callable[[Added], None],
        fail: Callable[[ClocheError], None],
    ) -> None:
        """Carry it out."""
        launcher.sharing.add(fds[0], self.target, self.writable, lambda: answer(Added()), fail)


class Added(Record):
    """It is there."""

    def write(self, writer: Writer) -> None:
        """There is nothing more to say."""

    @classmethod
    def read(cls, reader: Reader) -> Added:
        """There is nothing more to be read."""
        del reader
        return cls()
