"""The request that lists what is shared with a running domain (layer 5)."""

from __future__ import annotations

from cloche.domain.control.wire import read_flag, read_text, write_text
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.domain.launcher import Launcher
    from cloche.errors import ClocheError
    from cloche.host.codec import Reader, Writer


class ShareList(Record):
    """What is shared?"""

    @property
    def name(self) -> str:
        """Its name on the wire."""
        return "share-list"

    def write(self, writer: Writer) -> None:
        """There is nothing more to say."""

    @classmethod
    def read(cls, reader: Reader) -> ShareList:
        """There is nothing more to be read."""
        del reader
        return cls()

    def serve(
        self,
        launcher: Launcher,
        fds: list[int],
        answer: Callable[[Shares], None],
        fail: Callable[[ClocheError], None],
    ) -> None:
        """Carry it out."""
        del fds, fail
        shares = (
            Listed(one.share.target, one.share.source, one.share.writable, one.added)
            for one in launcher.sharing.shares
        )
        answer(Shares(tuple(shares)))


class Listed(Record):
    """One shared directory.

    Attributes:
        target: Where it is in the guest.
        source: Where it was on the host when it was shared.
        writable: Whether the guest may change it.
        added: Whether it was added while the domain ran.
    """

    target: str
    source: str
    writable: bool
    added: bool

    def write(self, writer: Writer) -> None:
        """Put the fields one after the other."""
        write_text(writer, self.target)
        write_text(writer, self.source)
        writer.u8(self.writable)
        writer.u8(self.added)

    @classmethod
    def read(cls, reader: Reader) -> Listed:
        """Take the fields out again."""
        return cls(read_text(reader), read_text(reader), read_flag(reader), read_flag(reader))


class Shares(Record):
    """Every shared directory, in the order in which they were shared."""

    shares: tuple[Listed, ...]

    def write(self, writer: Writer) -> None:
        """Put the fields one after the other."""
        writer.many(self.shares, lambda writer, one: one.write(writer))

    @classmethod
    def read(cls, reader: Reader) -> Shares:
        """Take the fields out again."""
        return cls(tuple(reader.many(10, Listed.read)))
