"""What is said to a machine of the pool by who takes it (layer 5; ``protocol/control.md``)."""

from __future__ import annotations

from cloche.domain.control import wire
from cloche.errors import ProtocolError
from cloche.host.scheduling import Scheduling
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from typing import Self

    from cloche.domain.control.fields import U8, U16, U32, U64


class Look(Record):
    """Are you still what you were made of? The one question that takes nothing."""


class Seen(Record):
    """The answer: what has changed since (empty for nothing), and when it was ready, in seconds since the epoch."""

    changed: str
    since_s: U64


class Claim(Record):
    """You are mine: go on, and be scheduled like this. So many times LEND follows, then BEGIN.

    Attributes:
        policy, priority, cpus: As in ``Scheduling``.
        raised_nice: The nice value plus 20.
    """

    shares: U32
    policy: U32
    priority: U32
    raised_nice: U8
    cpus: tuple[U32, ...]

    @classmethod
    def of(cls, shares: int, wanted: Scheduling) -> Self:
        """Return that of somebody who is scheduled like this."""
        return cls(shares, wanted.policy, wanted.priority, wanted.nice + 20, wanted.cpus)

    @property
    def scheduling(self) -> Scheduling:
        """How the machine is to be scheduled."""
        return Scheduling(self.policy, self.priority, self.raised_nice - 20, self.cpus)


class Lend(Record):
    """Show the directory behind the one descriptor at ``target`` in the guest."""

    source: str
    target: str
    writable: bool


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
    workdir: str
    user: str
    umask: U32
    ignored: U64
    pids: U32
    timeout_ms: U64
    privileged: bool
    strace: bool
    terminal: bool
    rows: U16
    cols: U16


def decode(packet: bytes, descriptors: int) -> Look | Claim | Lend | Begin:
    """Return what a packet says to a machine of the pool that has come with so many descriptors.

    Raises:
        ProtocolError: Nothing that this version knows.
    """
    said = wire.decode(packet, descriptors, wire.CLAIMS)
    if not isinstance(said, (Look, Claim, Lend, Begin)):
        raise ProtocolError("a machine of the pool is told what this version of cloche does not know")
    return said


class Words(Record):
    """A program with its arguments, variables set for it, and the caller's environment (little of it is passed on)."""

    argv: tuple[bytes, ...]
    env: tuple[tuple[bytes, bytes], ...]
    environment: tuple[tuple[bytes, bytes], ...]
