"""The request that takes a shared directory away from a running domain (layer 5)."""

from __future__ import annotations

from cloche.domain.control.wire import read_flag, read_text, write_text
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.domain.launcher import Launcher
    from cloche.errors import ClocheError
    from cloche.host.codec import Reader, Writer


class ShareRemove(Record):
    """Take away what is shared at ``place`` in the guest, or from there on the host.

    ``forced``: whether or not a program uses it, and whatever the guest says.
    """

    place: str
    forced: bool

    @property
    def name(self) -> str:
        """Its name on the wire."""
        return "share-remove"

    def write(self, writer: Writer) -> None:
        """Put the fields one after the other."""
        write_text(writer, self.place)
        writer.u8(self.forced)

    @classmethod
    def read(cls, reader: Reader) -> ShareRemove:
        """Take the fields out again."""
        return cls(read_text(reader), read_flag(reader))

    def serve(
        self,
        launcher: Launcher,
        fds: list[int],
        answer: Callable[[Removed], None],
        fail: Callable[[ClocheError], None],
    ) -> None:
        """Carry it out."""
        del fds
        launcher.sharing.remove(self.place, self.forced, lambda: answer(Removed()), fail)


class Removed(Record):
    """It is gone."""

    def write(self, writer: Writer) -> None:
        """There is nothing more to say."""

    @classmethod
    def read(cls, reader: Reader) -> Removed:
        """There is nothing more to be read."""
        del reader
        return cls()
