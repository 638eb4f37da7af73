"""The request that asks what a running domain is (layer 5)."""

from __future__ import annotations

from cloche.domain.control.wire import read_flag, read_text, write_text
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.domain.launcher import Launcher
    from cloche.errors import ClocheError
    from cloche.host.codec import Reader, Writer

#: As much of a program's words as is told, in bytes.
_TOLD = 4096


class Ask(Record):
    """What are you?"""

    @property
    def name(self) -> str:
        """Its name on the wire."""
        return "status"

    def write(self, writer: Writer) -> None:
        """There is nothing more to say."""

    @classmethod
    def read(cls, reader: Reader) -> Ask:
        """There is nothing more to be read."""
        del reader
        return cls()

    def serve(
        self,
        launcher: Launcher,
        fds: list[int],
        answer: Callable[[Status], None],
        fail: Callable[[ClocheError], None],
    ) -> None:
        """Carry it out."""
        del fds, fail
        plan = launcher.plan
        machine = plan.machine
        answer(
            Status(
                program=() if launcher.is_remote else _beginning(plan.command.argv),
                driver=plan.driver,
                isolation=plan.isolation,
                accelerator=machine.accelerator if machine else "",
                memory_mib=machine.memory_mib if machine else 0,
                cpus=machine.cpus if machine else 0,
                shares=len(launcher.sharing.shares),
                takes_shares=launcher.sharing.is_possible,
            )
        )


def _beginning(argv: tuple[bytes, ...]) -> tuple[bytes, ...]:
    left, words = _TOLD, []
    for word in argv:
        words.append(word[:left])
        left -= len(word)
        if left <= 0:
            break
    return tuple(words)


class Status(Record):
    """What a domain is.

    Attributes:
        program: Its program and arguments, cut after some length; empty for a sandbox of the API, which runs many.
        accelerator: What runs the guest's instructions; empty where there is no machine.
        memory_mib: The most memory the machine may use, in MiB; 0 where there is no machine.
        shares: How many directories are shared with it.
        takes_shares: Whether more can be.
    """

    program: tuple[bytes, ...]
    driver: str
    isolation: str
    accelerator: str
    memory_mib: int
    cpus: int
    shares: int
    takes_shares: bool

    def write(self, writer: Writer) -> None:
        """Put the fields one after the other."""
        writer.many(self.program, lambda writer, word: writer.blob(word))
        for text in (self.driver, self.isolation, self.accelerator):
            write_text(writer, text)
        for number in (self.memory_mib, self.cpus, self.shares):
            writer.u32(number)
        writer.u8(self.takes_shares)

    @classmethod
    def read(cls, reader: Reader) -> Status:
        """Take the fields out again."""
        program = tuple(reader.many(4, lambda reader: reader.blob()))
        words = (read_text(reader), read_text(reader), read_text(reader))
        numbers = (reader.u32(), reader.u32(), reader.u32())
        return cls(program, *words, *numbers, read_flag(reader))
