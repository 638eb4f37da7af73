"""The requests about a domain's life and its programs (layer 5)."""

from __future__ import annotations

from cloche.domain.control.wire import read_flag, read_text, write_text
from cloche.errors import DomainError
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.domain.launcher import Launcher
    from cloche.domain.programs import Programs
    from cloche.errors import ClocheError
    from cloche.host.codec import Reader, Writer

    Fail = Callable[[ClocheError], None]


def programs_of(launcher: Launcher) -> Programs:
    """Return the account of a domain's programs.

    Raises:
        DomainError: A host program has it.
    """
    if launcher.programs is None:
        raise DomainError(
            "the domain belongs to a program that uses the Python API, which alone runs programs in it",
            hint="A domain that `cloche run` has started can be asked.",
        )
    return launcher.programs


class Nothing(Record):
    """An answer that says no more than that it was done."""

    def write(self, writer: Writer) -> None:
        """There is nothing more to say."""

    @classmethod
    def read(cls, reader: Reader) -> Nothing:
        """There is nothing more to be read."""
        del reader
        return cls()


class AskLife(Record):
    """How are you?"""

    @property
    def name(self) -> str:
        """Its name on the wire."""
        return "life"

    def write(self, writer: Writer) -> None:
        """There is nothing more to say."""

    @classmethod
    def read(cls, reader: Reader) -> AskLife:
        """There is nothing more to be read."""
        del reader
        return cls()

    def serve(
        self, launcher: Launcher, fds: list[int], answer: Callable[[LifeNow], None], fail: Fail
    ) -> None:
        """Carry it out."""
        del fds, fail
        programs = launcher.programs
        if programs is None:
            answer(LifeNow("running", launcher.name, 0, detached=False, terminal=False, interactive=False))
            return
        outlet = programs.outlet
        answer(
            LifeNow(
                programs.domain.life.word,
                launcher.name,
                programs.count,
                detached=programs.detached,
                terminal=outlet is not None and outlet.has_terminal,
                interactive=outlet is not None and outlet.takes_input,
            )
        )


class LifeNow(Record):
    """How a domain is.

    Attributes:
        state: A word of ``domain.states.Life.word``.
        called: What its owner calls it; empty for nothing.
        programs: How many run in it; 0 where a host program keeps account of that.
        detached: Whether nobody waits for its program.
        terminal: Whether its detached program has a terminal.
        interactive: Whether whoever attaches may give it input.
    """

    state: str
    called: str
    programs: int
    detached: bool
    terminal: bool
    interactive: bool

    def write(self, writer: Writer) -> None:
        """Put the fields one after the other."""
        write_text(writer, self.state)
        write_text(writer, self.called)
        writer.u32(self.programs)
        for flag in (self.detached, self.terminal, self.interactive):
            writer.u8(flag)

    @classmethod
    def read(cls, reader: Reader) -> LifeNow:
        """Take the fields out again."""
        words = (read_text(reader), read_text(reader))
        return cls(*words, reader.u32(), read_flag(reader), read_flag(reader), read_flag(reader))


class Stop(Record):
    """End every program with SIGTERM, and the domain when some go on after ``grace_ms``."""

    grace_ms: int

    @property
    def name(self) -> str:
        """Its name on the wire."""
        return "stop"

    def write(self, writer: Writer) -> None:
        """Put the fields one after the other."""
        writer.u32(self.grace_ms)

    @classmethod
    def read(cls, reader: Reader) -> Stop:
        """Take the fields out again."""
        return cls(reader.u32())

    def serve(
        self, launcher: Launcher, fds: list[int], answer: Callable[[Nothing], None], fail: Fail
    ) -> None:
        """Carry it out: the answer says that it has begun, the end of the connection that it is over."""
        del fds, fail
        if launcher.programs is None:
            # Its programs are a host program's, which learns that they are gone.
            launcher.reactor.call_soon(
                lambda: launcher.abort(DomainError("the sandbox was ended from outside, by `cloche stop`"))
            )
        else:
            launcher.programs.stop(self.grace_ms / 1000)
        answer(Nothing())


class Kill(Record):
    """Send a signal to the domain's program."""

    signo: int

    @property
    def name(self) -> str:
        """Its name on the wire."""
        return "kill"

    def write(self, writer: Writer) -> None:
        """Put the fields one after the other."""
        writer.u32(self.signo)

    @classmethod
    def read(cls, reader: Reader) -> Kill:
        """Take the fields out again."""
        return cls(reader.u32())

    def serve(
        self, launcher: Launcher, fds: list[int], answer: Callable[[Nothing], None], fail: Fail
    ) -> None:
        """Carry it out."""
        del fds, fail
        if not 0 < self.signo <= 64:
            raise DomainError(f"there is no signal {self.signo}", hint="`kill -l` lists them.")
        programs_of(launcher).signal(self.signo)
        answer(Nothing())


class Wait(Record):
    """What does the domain's program end with? Answered when it has."""

    @property
    def name(self) -> str:
        """Its name on the wire."""
        return "wait"

    def write(self, writer: Writer) -> None:
        """There is nothing more to say."""

    @classmethod
    def read(cls, reader: Reader) -> Wait:
        """There is nothing more to be read."""
        del reader
        return cls()

    def serve(self, launcher: Launcher, fds: list[int], answer: Callable[[Ended], None], fail: Fail) -> None:
        """Carry it out."""
        del fds, fail
        programs = programs_of(launcher)
        programs.wait(lambda status: answer(Ended(status, programs.count == 0)))


class Ended(Record):
    """The program's status as a shell shows it, and whether the domain ends with it."""

    status: int
    is_last: bool

    def write(self, writer: Writer) -> None:
        """Put the fields one after the other."""
        writer.u32(self.status)
        writer.u8(self.is_last)

    @classmethod
    def read(cls, reader: Reader) -> Ended:
        """Take the fields out again."""
        return cls(reader.u32(), read_flag(reader))


class Pause(Record):
    """Stand still."""

    @property
    def name(self) -> str:
        """Its name on the wire."""
        return "pause"

    def write(self, writer: Writer) -> None:
        """There is nothing more to say."""

    @classmethod
    def read(cls, reader: Reader) -> Pause:
        """There is nothing more to be read."""
        del reader
        return cls()

    def serve(
        self, launcher: Launcher, fds: list[int], answer: Callable[[Nothing], None], fail: Fail
    ) -> None:
        """Carry it out."""
        del fds
        programs_of(launcher).domain.pause(lambda error: fail(error) if error else answer(Nothing()))


class Resume(Record):
    """Go on."""

    @property
    def name(self) -> str:
        """Its name on the wire."""
        return "resume"

    def write(self, writer: Writer) -> None:
        """There is nothing more to say."""

    @classmethod
    def read(cls, reader: Reader) -> Resume:
        """There is nothing more to be read."""
        del reader
        return cls()

    def serve(
        self, launcher: Launcher, fds: list[int], answer: Callable[[Nothing], None], fail: Fail
    ) -> None:
        """Carry it out."""
        del fds
        programs_of(launcher).domain.resume(lambda error: fail(error) if error else answer(Nothing()))


class Rename(Record):
    """Be called something else."""

    called: str

    @property
    def name(self) -> str:
        """Its name on the wire."""
        return "rename"

    def write(self, writer: Writer) -> None:
        """Put the fields one after the other."""
        write_text(writer, self.called)

    @classmethod
    def read(cls, reader: Reader) -> Rename:
        """Take the fields out again."""
        return cls(read_text(reader))

    def serve(
        self, launcher: Launcher, fds: list[int], answer: Callable[[Nothing], None], fail: Fail
    ) -> None:
        """Carry it out."""
        del fds, fail
        from cloche.host.names import check_name

        launcher.rename(check_name(self.called))
        answer(Nothing())


class LogWait(Record):
    """Has the log of your program grown beyond ``position``? Answered when it has."""

    position: int

    @property
    def name(self) -> str:
        """Its name on the wire."""
        return "log-wait"

    def write(self, writer: Writer) -> None:
        """Put the fields one after the other."""
        writer.u64(self.position)

    @classmethod
    def read(cls, reader: Reader) -> LogWait:
        """Take the fields out again."""
        return cls(reader.u64())

    def serve(
        self, launcher: Launcher, fds: list[int], answer: Callable[[Nothing], None], fail: Fail
    ) -> None:
        """Carry it out."""
        del fds, fail
        outlet = programs_of(launcher).outlet
        if outlet is None:
            raise DomainError(
                "the domain has no log: its program writes to the terminal or the files of whoever has started it",
                hint="`cloche run -d` keeps what a program writes.",
            )
        if outlet.position > self.position:
            answer(Nothing())
        else:
            outlet.followers.append(lambda: answer(Nothing()))
