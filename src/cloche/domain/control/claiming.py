"""What is said to a machine of the pool by who takes it (layer 5; ``protocol/control.md``)."""

from __future__ import annotations

import os
import stat

from cloche.domain.control.wire import VERSION, read_flag, read_text, write_text
from cloche.errors import ProtocolError
from cloche.host.codec import Reader, Writer
from cloche.host.scheduling import Scheduling
from cloche.record import Record

#: Words, variables and the caller's environment, in bytes.
_MOST_WORDS = 8 << 20


class Look(Record):
    """Are you still what you were made of? The one question that takes nothing."""

    @property
    def name(self) -> str:
        """Its name on the wire."""
        return "look"

    def write(self, writer: Writer) -> None:
        """There is nothing more to say."""

    @classmethod
    def read(cls, reader: Reader) -> Look:
        """There is nothing more to be read."""
        del reader
        return cls()


class Seen(Record):
    """The answer: what has changed since (empty for nothing), and when it was ready, in seconds since the epoch."""

    changed: str
    since_s: int

    def write(self, writer: Writer) -> None:
        """Put the fields one after the other."""
        write_text(writer, self.changed)
        writer.u64(self.since_s)

    @classmethod
    def read(cls, reader: Reader) -> Seen:
        """Take the fields out again."""
        return cls(read_text(reader), reader.u64())


class Claim(Record):
    """You are mine: go on, and be scheduled like this. ``shares`` messages of that kind follow, then BEGIN."""

    shares: int
    scheduling: Scheduling

    @property
    def name(self) -> str:
        """Its name on the wire."""
        return "claim"

    def write(self, writer: Writer) -> None:
        """Put the fields one after the other."""
        writer.u32(self.shares)
        writer.u32(self.scheduling.policy)
        writer.u32(self.scheduling.priority)
        writer.u8(self.scheduling.nice + 20)
        writer.many(self.scheduling.cpus, lambda writer, cpu: writer.u32(cpu))

    @classmethod
    def read(cls, reader: Reader) -> Claim:
        """Take the fields out again."""
        shares = reader.u32()
        policy, priority, nice = reader.u32(), reader.u32(), reader.u8() - 20
        return cls(shares, Scheduling(policy, priority, nice, tuple(reader.many(4, lambda r: r.u32()))))


class Lend(Record):
    """Show the directory behind the one descriptor at ``target`` in the guest."""

    source: str
    target: str
    writable: bool

    @property
    def name(self) -> str:
        """Its name on the wire."""
        return "lend"

    def write(self, writer: Writer) -> None:
        """Put the fields one after the other."""
        write_text(writer, self.source)
        write_text(writer, self.target)
        writer.u8(self.writable)

    @classmethod
    def read(cls, reader: Reader) -> Lend:
        """Take the fields out again."""
        return cls(read_text(reader), read_text(reader), read_flag(reader))


class Nothing(Record):
    """It goes on, and what was lent is at its place: the program can begin."""

    def write(self, writer: Writer) -> None:
        """There is nothing more to say."""

    @classmethod
    def read(cls, reader: Reader) -> Nothing:
        """There is nothing more to be read."""
        del reader
        return cls()


class Begin(Record):
    """Run the program. The descriptors are stdin, stdout, stderr, and a file with the words (``Words``).

    Attributes:
        called: What the domain is to be called; empty for nothing.
        cwd, umask, ignored: As in the facts about a caller.
        workdir, user: As in a request; empty for None.
        privileged, pids, strace: Likewise; 0 ``pids`` for None.
        timeout_ms: Until the program is ended; 0 for never.
        terminal: Whether it gets a terminal, of so many ``rows`` and ``cols``.
    """

    called: str
    cwd: str
    umask: int
    ignored: int
    workdir: str
    user: str
    privileged: bool
    pids: int
    strace: bool
    timeout_ms: int
    terminal: bool
    rows: int
    cols: int

    @property
    def name(self) -> str:
        """Its name on the wire."""
        return "begin"

    def write(self, writer: Writer) -> None:
        """Put the fields one after the other."""
        for text in (self.called, self.cwd, self.workdir, self.user):
            write_text(writer, text)
        writer.u32(self.umask)
        writer.u64(self.ignored)
        writer.u32(self.pids)
        writer.u64(self.timeout_ms)
        for flag in (self.privileged, self.strace, self.terminal):
            writer.u8(flag)
        writer.u16(self.rows)
        writer.u16(self.cols)

    @classmethod
    def read(cls, reader: Reader) -> Begin:
        """Take the fields out again."""
        called, cwd, workdir, user = (read_text(reader) for _ in range(4))
        umask, ignored, pids, timeout_ms = reader.u32(), reader.u64(), reader.u32(), reader.u64()
        privileged, strace, terminal = (read_flag(reader) for _ in range(3))
        return cls(
            called,
            cwd,
            umask,
            ignored,
            workdir,
            user,
            privileged,
            pids,
            strace,
            timeout_ms,
            terminal,
            reader.u16(),
            reader.u16(),
        )


#: How many descriptors come with each.
_DESCRIPTORS = {"look": 0, "claim": 0, "lend": 1, "begin": 4}


def decode(packet: bytes, descriptors: int) -> Look | Claim | Lend | Begin:
    """Return what a packet says to a machine of the pool that has come with so many descriptors.

    Raises:
        ProtocolError: Nothing that this version knows.
    """
    reader = Reader(packet)
    version, name = reader.u8(), reader.blob().decode("ascii", "backslashreplace")
    if version != VERSION or _DESCRIPTORS.get(name) != descriptors:
        raise ProtocolError("a machine of the pool is told what this version of cloche does not know")
    said: Look | Claim | Lend | Begin
    if name == "look":
        said = Look.read(reader)
    elif name == "claim":
        said = Claim.read(reader)
    elif name == "lend":
        said = Lend.read(reader)
    else:
        said = Begin.read(reader)
    reader.end()
    return said


class Words(Record):
    """A program with its arguments, variables set for it, and the caller's environment (little of it is passed on)."""

    argv: tuple[bytes, ...]
    env: tuple[tuple[bytes, bytes], ...]
    environment: tuple[tuple[bytes, bytes], ...]


def store_words(words: Words) -> int:
    """Return a descriptor of a file with the words; the caller's to close."""
    writer = Writer()
    writer.many(words.argv, lambda writer, word: writer.blob(word))
    for pairs in (words.env, words.environment):
        writer.many(pairs, _write_pair)
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
    env, environment = (
        tuple(reader.many(8, lambda reader: (reader.blob(), reader.blob()))) for _ in range(2)
    )
    reader.end()
    return Words(argv, env, environment)
