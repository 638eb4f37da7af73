"""Requests and answers as packets (layer 5; ``protocol/control.md``).

One packet is one message, so that neither side ever waits for the rest of one. Both sides are the same user's, and may
be of different versions of cloche.
"""

from __future__ import annotations

from cloche import errors
from cloche.errors import ClocheError, DomainError, ProtocolError
from cloche.host.codec import Reader, Writer
from cloche.record import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from cloche.domain.control.joining import Attach, Exec
    from cloche.domain.launcher import Launcher

VERSION = 1
#: Limits of the protocol.
MAX_PACKET = 64 * 1024
MAX_DESCRIPTORS = 4

#: What an answer begins with.
DONE, FAILED = 0, 1

#: Every request: the module and the class that know it, and how many descriptors come with it.
REQUESTS = {
    "disk-add": ("disk_add", "DiskAdd", 0),
    "kill": ("life", "Kill", 0),
    "life": ("life", "AskLife", 0),
    "log-wait": ("life", "LogWait", 0),
    "inspect": ("numbers", "Inspect", 1),
    "pause": ("life", "Pause", 0),
    "rename": ("life", "Rename", 0),
    "resume": ("life", "Resume", 0),
    "share-add": ("share_add", "ShareAdd", 1),
    "share-list": ("share_list", "ShareList", 0),
    "share-remove": ("share_remove", "ShareRemove", 0),
    "snapshot-save": ("snapshot_save", "SnapshotSave", 0),
    "stats": ("numbers", "AskNumbers", 0),
    "status": ("status", "Ask", 0),
    "stop": ("life", "Stop", 0),
    "wait": ("life", "Wait", 0),
}

#: Requests that begin a conversation, likewise: what is asked goes on until one side closes the connection.
CONVERSATIONS = {
    "attach": ("joining", "Attach", 3),
    "exec": ("joining", "Exec", 4),
}


class Answer(Protocol):
    """What a request is answered with when it was carried out."""

    def write(self, writer: Writer) -> None:
        """Put the fields one after the other."""
        raise NotImplementedError


class Request(Protocol):
    """Something to be asked, as it is on the wire."""

    @property
    def name(self) -> str:
        """Its name in ``REQUESTS``."""
        raise NotImplementedError

    def write(self, writer: Writer) -> None:
        """Put the fields one after the other."""
        raise NotImplementedError

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Take the fields out again.

        Raises:
            ProtocolError: They are malformed.
        """
        raise NotImplementedError


class Question(Request, Protocol):
    """A request that has one answer."""

    def serve(
        self,
        launcher: Launcher,
        fds: list[int],
        answer: Callable[[Answer], None],
        fail: Callable[[ClocheError], None],
    ) -> None:
        """Carry it out, in the supervisor; ``answer`` or ``fail`` is called once, now or later.

        The descriptors are open until then.

        Raises:
            ClocheError: As if ``fail`` had been called.
        """
        raise NotImplementedError


def encode_request(request: Request) -> bytes:
    """Return the packet of a request.

    Raises:
        ProtocolError: It is too long.
    """
    writer = Writer()
    writer.u8(VERSION)
    writer.blob(request.name.encode())
    request.write(writer)
    return _bounded(writer.finish())


def decode_request(packet: bytes, descriptors: int) -> Question | Exec | Attach:
    """Return what a packet asks that has come with so many descriptors.

    Raises:
        DomainError: A request that this version does not know.
        ProtocolError: No request.
    """
    reader = Reader(packet)
    version = reader.u8()
    name = reader.blob().decode("ascii", "backslashreplace")
    if version != VERSION or name not in (REQUESTS | CONVERSATIONS):
        raise DomainError(
            f"the domain was started by a version of cloche that knows no request {name!r}",
            hint="Ask it with the version that has started it.",
        )
    from importlib import import_module

    module, known_as, expected = (REQUESTS | CONVERSATIONS)[name]
    kind: type[Question | Exec | Attach] = getattr(import_module(f"cloche.domain.control.{module}"), known_as)
    request = kind.read(reader)
    reader.end()
    if descriptors != expected:
        raise ProtocolError(f"the request comes with {descriptors} descriptors and not {expected}")
    return request


def encode_answer(answer: Answer) -> bytes:
    """Return the packet of an answer.

    Raises:
        ProtocolError: It is too long.
    """
    writer = Writer()
    writer.u8(VERSION)
    writer.u8(DONE)
    answer.write(writer)
    return _bounded(writer.finish())


def encode_failure(error: ClocheError) -> bytes:
    """Return the packet of an error; of one that is too long, its beginning."""
    writer = Writer()
    writer.u8(VERSION)
    writer.u8(FAILED)
    writer.blob(type(error).__name__.encode())
    write_text(writer, error.message[:8192])
    write_text(writer, (error.hint or "")[:8192])
    writer.many((line[:512] for line in error.detail[:32]), write_text)
    return writer.finish()


def decode_answer(packet: bytes) -> Reader:
    """Return the fields of an answer.

    Raises:
        ClocheError: The request has failed: the error that the supervisor has raised.
        ProtocolError: No answer.
    """
    reader = Reader(packet)
    version, outcome = reader.u8(), reader.u8()
    if version != VERSION or outcome > FAILED:
        raise ProtocolError(
            "the domain's supervisor gives an answer that this version of cloche does not know"
        )
    if outcome == DONE:
        return reader
    kind = getattr(errors, reader.blob().decode("ascii", "replace"), ClocheError)
    if not (isinstance(kind, type) and issubclass(kind, ClocheError)):
        kind = ClocheError
    message, hint = read_text(reader), read_text(reader)
    detail = tuple(reader.many(4, read_text))
    reader.end()
    error = kind.__new__(kind)
    ClocheError.__init__(error, message, hint=hint or None, detail=detail)
    raise error


def write_text(writer: Writer, text: str) -> None:
    """Put text that may hold the bytes of a file's name."""
    writer.blob(text.encode("utf-8", "surrogateescape"))


def read_text(reader: Reader) -> str:
    """Take such text."""
    return reader.blob().decode("utf-8", "surrogateescape")


def read_flag(reader: Reader) -> bool:
    """Take a truth value.

    Raises:
        ProtocolError: It is neither.
    """
    value = reader.u8()
    if value > 1:
        raise ProtocolError("a message holds a truth value that is none")
    return bool(value)


def _bounded(packet: bytes) -> bytes:
    if len(packet) > MAX_PACKET:
        raise ProtocolError(
            f"a message of {len(packet)} bytes is longer than the {MAX_PACKET} of the protocol"
        )
    return packet
