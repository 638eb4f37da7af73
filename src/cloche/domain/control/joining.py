"""The requests that bring a program, or somebody's terminal, into a running domain (layer 5)."""

from __future__ import annotations

from cloche.domain.control import wire
from cloche.domain.control.fields import load
from cloche.errors import ClocheError, DomainError
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from cloche.domain.control.fields import U16, U32
    from cloche.domain.control.life import Governed
    from cloche.domain.control.talk import Link


class Exec(Record):
    """Run a program; descriptors are its stdin, stdout and stderr, and the file with its words (``Words``).

    Attributes:
        terminal: Whether it gets a terminal; its keys come from the first descriptor.
        rows, cols: The terminal's size.
        user: Whom it runs as; empty for whom the domain's own program does.
        workdir: Where it starts; empty for where the domain's own program did.
    """

    terminal: bool
    rows: U16
    cols: U16
    user: str
    workdir: str

    def converse(self, launcher: Governed, fds: list[int], link: Link) -> None:
        """Begin it. The descriptors are closed afterwards.

        Raises:
            ClocheError: It cannot be.
        """
        from cloche.domain.joins import Join

        Join(launcher, self, load(Words, fds[3]), fds[:3], link)


class Attach(Record):
    """Be the caller of the domain's detached program; descriptors are stdin, stdout and stderr.

    Attributes:
        wants_input: Whether the first one is read.
        rows, cols: The terminal's size; 0 without one.
    """

    wants_input: bool
    rows: U16
    cols: U16

    def converse(self, launcher: Governed, fds: list[int], link: Link) -> None:
        """Begin it. The descriptors are closed afterwards.

        Raises:
            ClocheError: It cannot be.
        """
        from cloche.domain.visits import Visit

        Visit(launcher, self, fds, link)


def begin(request: Exec | Attach, launcher: Governed, fds: list[int], link: Link) -> None:
    """Begin what a client has asked for; what keeps it from that is all it is told."""
    try:
        request.converse(launcher, fds, link)
    except ClocheError as error:
        link.send(wire.encode_failure(error), last=True)
    except OSError as error:
        failed = DomainError(f"the program's streams cannot be used: {error.strerror}")
        link.send(wire.encode_failure(failed), last=True)


class Started(Record):
    """The answer to both: the program runs, under this number in the guest (0: it ran before)."""

    pid: U32


class Words(Record):
    """A program with its arguments, and variables besides those that the domain's own program has."""

    argv: tuple[bytes, ...]
    env: tuple[tuple[bytes, bytes], ...]
