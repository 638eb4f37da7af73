"""Where the output of a detached program goes: to the log, to who is attached, and on a full disk nowhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from cloche.domain.outlet import Outlet
from cloche.host.outlog import CLOCHE, STDERR, STDOUT

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.guest.job import Job
    from cloche.host.outlog import LogWriter


class Log:
    """Stands for a log; may be full."""

    def __init__(self) -> None:
        self.written: list[tuple[int, bytes]] = []
        self.is_full = False
        self.position = 0

    def write(self, stream: int, data: bytes) -> None:
        """Keep it, if there is room."""
        if self.is_full:
            raise OSError(28, "No space left on device")
        self.written.append((stream, data))
        self.position += len(data)


class Guest:
    """Stands for who is attached, and takes so much at a time."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.got = b""

    def write(self, stream: int, data: bytes) -> int:
        """Take what there is room for."""
        del stream
        taken = data[: self.room]
        self.got += taken
        self.room -= len(taken)
        return len(taken)

    def read(self, size: int) -> bytes | None:
        """Give nothing."""
        del size
        return None

    def ended(self, job: Job) -> None:
        """Hear of the end."""
        del job


def made(log: Log) -> tuple[Outlet, Callable[[bytes], int | None], Callable[[bytes], int | None]]:
    """Return an outlet and what takes each stream."""
    outlet = Outlet(cast("LogWriter", log), takes_input=True, has_terminal=False)
    sinks = (outlet.sink(STDOUT), outlet.sink(STDERR))
    return outlet, *(cast("Callable[[bytes], int | None]", sink) for sink in sinks)  # type: ignore[return-value]


def test_what_a_guest_has_not_taken_is_neither_lost_nor_logged_twice() -> None:
    """It is offered again, and held back until then, for both streams."""
    log = Log()
    outlet, out, err = made(log)
    guest = Guest(3)
    outlet.visitor = guest
    assert out(b"abcdef") == 3
    assert (out(b"def"), err(b"x")) == (0, 0)
    guest.room = 100
    outlet.go_on()
    assert (out(b"def"), err(b"x")) == (3, 1)
    assert log.written == [(STDOUT, b"abc"), (STDOUT, b"def"), (STDERR, b"x")]
    assert guest.got == b"abcdefx"


def test_when_the_guest_has_gone_all_goes_on() -> None:
    """What was held back is logged at once."""
    log = Log()
    outlet, out, _ = made(log)
    outlet.visitor = Guest(0)
    assert out(b"abc") == 0
    outlet.visitor = None
    outlet.go_on()
    assert out(b"abc") == 3
    assert log.written == [(STDOUT, b"abc")]


def test_a_full_disk_stops_nobody_and_is_said_afterwards() -> None:
    """The program's bytes are taken; the log says how many are missing, in their place."""
    log = Log()
    _, out, _ = made(log)
    log.is_full = True
    assert out(b"12345") == 5
    log.is_full = False
    assert out(b"6") == 1
    assert log.written[0] == (CLOCHE, b"5 bytes of output are missing here: there was no room for them\n")
    assert log.written[1] == (STDOUT, b"6")


def test_followers_are_told_once() -> None:
    """Of the next thing that is written, and forgotten then."""
    outlet, out, _ = made(Log())
    told: list[int] = []
    outlet.followers.append(lambda: told.append(outlet.position))
    out(b"abc")
    out(b"def")
    assert told == [3]
