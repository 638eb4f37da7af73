"""The requests about a domain's life and its programs (layer 5)."""

from __future__ import annotations

from cloche.domain.control.fields import Nothing
from cloche.errors import DomainError
from cloche.record import TYPE_CHECKING, Protocol, Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.domain.control.fields import U32, U64
    from cloche.domain.launcher import Launcher
    from cloche.domain.programs import Programs
    from cloche.errors import ClocheError
    from cloche.model.plan import LaunchPlan

    Fail = Callable[[ClocheError], None]
    Work = Callable[[Callable[[], None], Fail], None]


class Governed(Protocol):
    """What has an account of a domain's programs: its launcher, or what stands for that in a host program."""

    @property
    def name(self) -> str:
        """What its owner calls the domain."""
        raise NotImplementedError

    @property
    def plan(self) -> LaunchPlan:
        """What the domain was made of."""
        raise NotImplementedError

    @property
    def programs(self) -> Programs | None:
        """The account; None where somebody else has it."""
        raise NotImplementedError

    def in_turn(self, work: Work, done: Callable[[], None], fail: Fail) -> None:
        """Do something while nothing else changes the machine."""
        raise NotImplementedError


def programs_of(launcher: Governed) -> Programs:
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


class AskLife(Record):
    """How are you?"""

    def serve(
        self, launcher: Governed, fds: list[int], answer: Callable[[LifeNow], None], fail: Fail
    ) -> None:
        """Carry it out."""
        del fds, fail
        programs = launcher.programs
        if programs is None:
            # A template is being made of it: nothing of anybody's runs in it.
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
        programs: How many run in it.
        detached: Whether nobody waits for its program.
        terminal: Whether its detached program has a terminal.
        interactive: Whether whoever attaches may give it input.
    """

    state: str
    called: str
    programs: U32
    detached: bool
    terminal: bool
    interactive: bool


class Stop(Record):
    """End every program with SIGTERM, and the domain when some go on after ``grace_ms``."""

    grace_ms: U32

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

    signo: U32

    def serve(
        self, launcher: Governed, fds: list[int], answer: Callable[[Nothing], None], fail: Fail
    ) -> None:
        """Carry it out."""
        del fds, fail
        if not 0 < self.signo <= 64:
            raise DomainError(f"there is no signal {self.signo}", hint="`kill -l` lists them.")
        programs_of(launcher).signal(self.signo)
        answer(Nothing())


class Wait(Record):
    """What does the domain's program end with? Answered when it has."""

    def serve(self, launcher: Launcher, fds: list[int], answer: Callable[[Ended], None], fail: Fail) -> None:
        """Carry it out."""
        del fds, fail
        programs = programs_of(launcher)
        programs.wait(lambda status: answer(Ended(status, programs.count == 0)))


class Ended(Record):
    """The program's status as a shell shows it, and whether the domain ends with it."""

    status: U32
    is_last: bool


class Pause(Record):
    """Stand still."""

    def serve(
        self, launcher: Governed, fds: list[int], answer: Callable[[Nothing], None], fail: Fail
    ) -> None:
        """Carry it out."""
        del fds
        _in_turn(launcher, programs_of(launcher).domain.pausing.pause, answer, fail)


class Resume(Record):
    """Go on."""

    def serve(
        self, launcher: Governed, fds: list[int], answer: Callable[[Nothing], None], fail: Fail
    ) -> None:
        """Carry it out."""
        del fds
        _in_turn(launcher, programs_of(launcher).domain.pausing.resume, answer, fail)


def _in_turn(
    launcher: Governed,
    start: Callable[[Callable[[ClocheError | None], None]], None],
    answer: Callable[[Nothing], None],
    fail: Fail,
) -> None:
    """Do it when no save is under way: that stops the machine, and lets it go on, itself."""

    def work(done: Callable[[], None], fail: Fail) -> None:
        start(lambda error: fail(error) if error else done())

    launcher.in_turn(work, lambda: answer(Nothing()), fail)


class Rename(Record):
    """Be called something else."""

    called: str

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

    position: U64

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
