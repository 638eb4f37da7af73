"""Requests and answers as packets (layer 5; ``protocol/control.md``).

One packet is one message, so that neither side ever waits for the rest of one. Both sides are the same user's, and may
be of different versions of cloche.
"""

from __future__ import annotations

from cloche import errors
from cloche.domain.control.fields import read_fields, read_text, write_fields, write_text
from cloche.errors import ClocheError, DomainError, ProtocolError
from cloche.host.codec import Reader, Writer
from cloche.record import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from cloche.domain.control.fields import Message
    from cloche.domain.control.joining import Attach, Exec
    from cloche.domain.launcher import Launcher

    T = TypeVar("T")

VERSION = 1
#: Limits of the protocol.
MAX_PACKET = 64 * 1024
MAX_DESCRIPTORS = 4

#: What an answer begins with.
DONE, FAILED = 0, 1

#: What is asked about the programs of a domain, or needs its guest: the module and the class that know it, and how many
#: descriptors come with it. Where a host program has the guest to itself, that answers.
OF_PROGRAMS = {
    "kill": ("life", "Kill", 0),
    "life": ("life", "AskLife", 0),
    "pause": ("life", "Pause", 0),
    "resume": ("life", "Resume", 0),
    "stats": ("numbers", "AskNumbers", 0),
}

#: Every request, likewise.
REQUESTS = OF_PROGRAMS | {
    "disk-add": ("adding", "DiskAdd", 0),
    "log-wait": ("life", "LogWait", 0),
    "inspect": ("numbers", "Inspect", 1),
    "net-add": ("adding", "NetAdd", 0),
    "profile-grow": ("growing", "ProfileGrow", 0),
    "rename": ("life", "Rename", 0),
    "share-add": ("share_add", "ShareAdd", 1),
    "share-list": ("share_list", "ShareList", 0),
    "share-remove": ("share_remove", "ShareRemove", 0),
    "snapshot-outline": ("snapshot_save", "SnapshotOutline", 0),
    "snapshot-save": ("snapshot_save", "SnapshotSave", 0),
    "status": ("status", "Ask", 0),
    "stop": ("life", "Stop", 0),
    "wait": ("life", "Wait", 0),
}

#: Requests that begin a conversation, likewise: what is asked goes on until one side closes the connection.
CONVERSATIONS = {
    "attach": ("joining", "Attach", 3),
    "exec": ("joining", "Exec", 4),
}

#: What is said to a machine of the pool, likewise.
CLAIMS = {
    "begin": ("claiming", "Begin", 4),
    "claim": ("claiming", "Claim", 0),
    "lend": ("claiming", "Lend", 1),
    "look": ("claiming", "Look", 0),
}
_NAMES = {known_as: name for name, (_, known_as, _) in (REQUESTS | CONVERSATIONS | CLAIMS).items()}


class Question(Protocol):
    """A request that has one answer."""

    def serve(
        self,
        launcher: Launcher,
        fds: list[int],
        answer: Callable[[Message], None],
        fail: Callable[[ClocheError], None],
    ) -> None:
        """Carry it out, in the supervisor; ``answer`` or ``fail`` is called once, now or later.

        The descriptors are open until then.

        Raises:
            ClocheError: As if ``fail`` had been called.
        """
        raise NotImplementedError


def encode_request(request: Message) -> bytes:
    """Return the packet of a request.

    Raises:
        ProtocolError: It is too long.
    """
    writer = Writer()
    writer.u8(VERSION)
    writer.blob(_NAMES[type(request).__name__].encode())
    write_fields(writer, request)
    return _bounded(writer.finish())


def decode_request(packet: bytes, descriptors: int) -> Question | Exec | Attach:
    """Return what a packet asks that has come with so many descriptors.

    Raises:
        DomainError: A request that this version does not know.
        ProtocolError: No request.
    """
    request: Question | Exec | Attach = decode(packet, descriptors, REQUESTS | CONVERSATIONS)
    return request


def is_about_programs(request: Question | Exec | Attach) -> bool:
    """Tell whether a host program that has the guest to itself is to be asked."""
    return _NAMES[type(request).__name__] in OF_PROGRAMS


def decode(packet: bytes, descriptors: int, known: dict[str, tuple[str, str, int]]) -> Any:
    """Return the request in a packet, one of those ``known`` (as in ``REQUESTS``).

    Raises:
        DomainError: Another one, or one of another version.
        ProtocolError: No request.
    """
    reader = Reader(packet)
    version = reader.u8()
    name = reader.blob().decode("ascii", "backslashreplace")
    if version != VERSION or name not in known:
        raise DomainError(
            f"the domain was started by a version of cloche that knows no request {name!r}",
            hint="Ask it with the version that has started it.",
        )
    from importlib import import_module

    module, known_as, expected = known[name]
    request = read_fields(getattr(import_module(f"cloche.domain.control.{module}"), known_as), reader)
    reader.end()
    if descriptors != expected:
        raise ProtocolError(f"the request comes with {descriptors} descriptors and not {expected}")
    return request


def encode_answer(answer: Message) -> bytes:
    """Return the packet of an answer.

    Raises:
        ProtocolError: It is too long.
    """
    writer = Writer()
    writer.u8(VERSION)
    writer.u8(DONE)
    write_fields(writer, answer)
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


def read_answer(packet: bytes, kind: Callable[..., T]) -> T:
    """Return the answer in a packet, of this kind.

    Raises:
        ClocheError: As ``decode_answer``.
    """
    reader = decode_answer(packet)
    answer = read_fields(kind, reader)
    reader.end()
    return answer


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


def _bounded(packet: bytes) -> bytes:
    if len(packet) > MAX_PACKET:
        raise ProtocolError(
            f"a message of {len(packet)} bytes is longer than the {MAX_PACKET} of the protocol"
        )
    return packet
