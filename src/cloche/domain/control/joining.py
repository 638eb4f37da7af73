"""The requests that bring a program, or somebody's terminal, into a running domain (layer 5)."""

from __future__ import annotations

import os
import stat

from cloche.domain.control.wire import read_flag, read_text, write_text
from cloche.errors import ProtocolError
from cloche.host.codec import Reader, Writer
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from cloche.domain.control.talk import Link
    from cloche.domain.launcher import Launcher

#: A program's words and variables come in a file: they may be longer than a packet.
_MOST_WORDS = 4 << 20


class Exec(Record):
    """Run a program; descriptors are its stdin, stdout and stderr, and the file with its words (``Words``).

    Attributes:
        terminal: Whether it gets a terminal; its keys come from the first descriptor.
        rows, cols: The terminal's size.
        user: Whom it runs as; empty for whom the domain's own program does.
        workdir: Where it starts; empty for where the domain's own program did.
    """

    terminal: bool
    rows: int
    cols: int
    user: str
    workdir: str

    @property
    def name(self) -> str:
        """Its name on the wire."""
        return "exec"

    def write(self, writer: Writer) -> None:
        """Put the fields one after the other."""
        writer.u8(self.terminal)
        writer.u16(self.rows)
        writer.u16(self.cols)
        write_text(writer, self.user)
        write_text(writer, self.workdir)

    @classmethod
    def read(cls, reader: Reader) -> Exec:
        """Take the fields out again."""
        return cls(read_flag(reader), reader.u16(), reader.u16(), read_text(reader), read_text(reader))

    def converse(self, launcher: Launcher, fds: list[int], link: Link) -> None:
        """Begin it. The descriptors are closed afterwards.

        Raises:
            ClocheError: It cannot be.
        """
        from cloche.domain.joins import Join

        Join(launcher, self, read_words(fds[3]), fds[:3], link)


class Attach(Record):
    """Be the caller of the domain's detached program; descriptors are stdin, stdout and stderr.

    Attributes:
        wants_input: Whether the first one is read.
        rows, cols: The terminal's size; 0 without one.
    """

    wants_input: bool
    rows: int
    cols: int

    @property
    def name(self) -> str:
        """Its name on the wire."""
        return "attach"

    def write(self, writer: Writer) -> None:
        """Put the fields one after the other."""
        writer.u8(self.wants_input)
        writer.u16(self.rows)
        writer.u16(self.cols)

    @classmethod
    def read(cls, reader: Reader) -> Attach:
        """Take the fields out again."""
        return cls(read_flag(reader), reader.u16(), reader.u16())

    def converse(self, launcher: Launcher, fds: list[int], link: Link) -> None:
        """Begin it. The descriptors are closed afterwards.

        Raises:
            ClocheError: It cannot be.
        """
        from cloche.domain.visits import Visit

        Visit(launcher, self, fds, link)


class Started(Record):
    """The answer to both: the program runs, under this number in the guest (0: it ran before)."""

    pid: int

    def write(self, writer: Writer) -> None:
        """Put the fields one after the other."""
        writer.u32(self.pid)

    @classmethod
    def read(cls, reader: Reader) -> Started:
        """Take the fields out again."""
        return cls(reader.u32())


class Words(Record):
    """A program with its arguments, and variables besides those that the domain's own program has."""

    argv: tuple[bytes, ...]
    env: tuple[tuple[bytes, bytes], ...]


def store_words(words: Words) -> int:
    """Return a descriptor of a file with the words; the caller's to close."""
    writer = Writer()
    writer.many(words.argv, lambda writer, word: writer.blob(word))
    writer.many(words.env, _write_pair)
    fd = os.memfd_create("words", os.MFD_CLOEXEC)
    data = writer.finish()
    while data:
        data = data[os.write(fd, data) :]
    return fd


def _write_pair(writer: Writer, pair: tuple[bytes, bytes]) -> None:
    writer.blob(pair[0])
    writer.blob(pair[1])


def read_words(fd: int) -> Words:
    """Return the words in a file.

    Raises:
        ProtocolError: There are none in it.
    """
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_WORDS:
        raise ProtocolError("a program's words and variables are too long, or in no file")
    reader = Reader(os.pread(fd, status.st_size, 0))
    argv = tuple(reader.many(4, lambda reader: reader.blob()))
    env = tuple(reader.many(8, lambda reader: (reader.blob(), reader.blob())))
    reader.end()
    return Words(argv, env)
