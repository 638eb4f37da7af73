"""The request that saves a running domain (layer 5)."""

from __future__ import annotations

from cloche.domain.control.life import Nothing
from cloche.domain.control.wire import read_flag, read_text, write_text
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.domain.launcher import Launcher
    from cloche.errors import ClocheError
    from cloche.host.codec import Reader, Writer


class SnapshotSave(Record):
    """Save yourself into this directory, and give it its name if it is to have one."""

    directory: str
    title: str
    stop: bool

    @property
    def name(self) -> str:
        """Its name on the wire."""
        return "snapshot-save"

    def write(self, writer: Writer) -> None:
        """Put the fields one after the other."""
        write_text(writer, self.directory)
        write_text(writer, self.title)
        writer.u8(self.stop)

    @classmethod
    def read(cls, reader: Reader) -> SnapshotSave:
        """Take the fields out again."""
        return cls(read_text(reader), read_text(reader), read_flag(reader))

    def serve(
        self,
        launcher: Launcher,
        fds: list[int],
        answer: Callable[[Nothing], None],
        fail: Callable[[ClocheError], None],
    ) -> None:
        """Carry it out."""
        del fds
        from cloche.domain.preserve import preserve

        preserve(
            launcher, self.directory, self.title, stop=self.stop, done=lambda: answer(Nothing()), fail=fail
        )
