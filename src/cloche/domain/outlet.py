"""The streams of a program that nobody waits for (layer 5): its output goes into a log, and to whoever is attached.

Input comes from whoever is attached, and from nobody in between. A client that does not take its output keeps the
program waiting, as a terminal does; the log has it all the same.
"""

from __future__ import annotations

from cloche.host.outlog import CLOCHE, STDOUT
from cloche.record import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.guest.job import Job
    from cloche.guest.session import Sink
    from cloche.host.outlog import LogWriter


class Visitor(Protocol):
    """Who is attached."""

    def write(self, stream: int, data: bytes) -> int:
        """Take output; return how much. After less than everything there is no more before ``Outlet.go_on``."""
        raise NotImplementedError

    def read(self, size: int) -> bytes | None:
        """Give input: at most ``size`` bytes, ``b""`` at its end, None for none now (``Outlet.go_on`` says when)."""
        raise NotImplementedError

    def ended(self, job: Job) -> None:
        """The program has ended, and everything it has written was taken."""
        raise NotImplementedError


class Outlet:
    """Where one program's output goes and its input comes from.

    Attributes:
        job: The program, once it was asked for.
        takes_input: Whether it has an input that somebody may give.
        has_terminal: Whether it has a terminal.
        visitor: Who is attached; None for nobody.
        size: Rows and columns that the last visitor's terminal has had.
        followers: Called when the log has grown, and forgotten.
    """

    def __init__(self, log: LogWriter, *, takes_input: bool, has_terminal: bool) -> None:
        self.job: Job | None = None
        self.takes_input = takes_input
        self.has_terminal = has_terminal
        self.visitor: Visitor | None = None
        self.size: tuple[int, int] = (0, 0)
        self.followers: list[Callable[[], None]] = []
        self._log = log
        self._is_held = False
        self._lost = 0

    @property
    def position(self) -> int:
        """The end of the log."""
        return self._log.position

    def sink(self, stream: int) -> Sink:
        """Return what takes a stream of the program's."""

        def take(data: bytes) -> int | None:
            if self._is_held:
                return 0
            taken = self.visitor.write(stream, data) if self.visitor is not None else len(data)
            if taken:
                self._keep(stream, data[:taken])
            self._is_held = taken < len(data)
            return taken

        return take

    def source(self, size: int) -> bytes | None:
        """Return input for the program."""
        return self.visitor.read(size) if self.visitor is not None else None

    def say(self, line: str) -> None:
        """Put down what cloche itself has to say."""
        self._keep(CLOCHE, f"{line}\n".encode("utf-8", "backslashreplace"))

    def _keep(self, stream: int, data: bytes) -> None:
        try:
            if self._lost:
                note = f"{self._lost} bytes of output are missing here: there was no room for them\n"
                self._log.write(CLOCHE, note.encode())
                self._lost = 0
            self._log.write(stream, data)
        except OSError:
            # A full disk is no reason to stop a program; what is missing is said as soon as there is room.
            self._lost += len(data)
            return
        followers, self.followers = self.followers, []
        for follower in followers:
            follower()

    def go_on(self) -> None:
        """The visitor has taken what it got, or has input, or has changed: move what there is to be moved."""
        self._is_held = False
        if self.job is None or self.job.done:
            return
        for pump in (self.job.stdin, self.job.stdout, self.job.stderr):
            if pump is not None:
                pump.update()

    def close(self) -> None:
        """Nothing comes any more."""
        self._log.close()


def name_of(stream: int) -> str:
    """Return the word for a stream of the log."""
    return {STDOUT: "stdout", CLOCHE: "cloche"}.get(stream, "stderr")
