"""The monitor of a running machine: commands and answers, and a QEMU that says what it likes."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.domain.numbers import Guest, read_guest
from cloche.drivers.qemu.control import QmpControl
from cloche.host.reactor import Reactor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cloche.errors import ClocheError


class Monitor:
    """A control and the other end of its connection."""

    def __init__(self, *, greeted: bool = True) -> None:
        self.reactor = Reactor()
        ours, self.qemu = socket.socketpair()
        self.qemu.settimeout(60)
        self.control = QmpControl(self.reactor, ours, greeted)
        self.said: list[ClocheError | None] = []

    def asked(self) -> dict[str, object]:
        """Return the next command."""
        line = b""
        while not line.endswith(b"\n"):
            line += self.qemu.recv(1)
        command: dict[str, object] = json.loads(line)
        return command

    def answers(self, text: bytes) -> None:
        """Say this, and let it be heard."""
        self.qemu.sendall(text)
        self.reactor.run_once(60)

    def close(self) -> None:
        """End both."""
        self.control.close()
        self.qemu.close()
        self.reactor.close()


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    """Provide one that has been greeted."""
    made = Monitor()
    yield made
    made.close()


def test_each_answer_is_for_its_command(monitor: Monitor) -> None:
    """Events and other numbers are nobody's; pieces of a line are one line."""
    monitor.control.pause(monitor.said.append)
    first = monitor.asked()
    assert first["execute"] == "stop"
    monitor.control.resume(monitor.said.append)
    second = monitor.asked()
    assert second["execute"] == "cont"
    monitor.answers(b'{"event":"STOP","id":1}\n{"return":{},"id":99}\n')
    said = json.dumps({"return": {}, "id": second["id"]}).encode()
    monitor.answers(said[:7])
    monitor.answers(said[7:] + b"\r\n")
    refusal = {"error": {"class": "GenericError", "desc": "no\x1b[31m"}, "id": first["id"]}
    monitor.answers(json.dumps(refusal).encode() + b"\n")
    resumed, paused = monitor.said
    assert resumed is None
    assert paused is not None
    assert "refuses: no\\x1b[31m" in paused.message


def test_one_that_was_not_greeted_is_told_to_take_commands() -> None:
    """Before anything else."""
    monitor = Monitor(greeted=False)
    monitor.control.pause(monitor.said.append)
    assert [monitor.asked()["execute"] for _ in range(2)] == ["qmp_capabilities", "stop"]
    monitor.close()


def test_an_end_is_an_answer(monitor: Monitor) -> None:
    """What was asked fails, once; so does what is asked afterwards."""
    monitor.control.pause(monitor.said.append)
    monitor.qemu.close()
    assert monitor.reactor.run_until(lambda: bool(monitor.said), 60)
    monitor.control.pause(monitor.said.append)
    assert [error is not None for error in monitor.said] == [True, True]


@given(st.binary(max_size=300))
def test_whatever_it_says_nothing_breaks(noise: bytes) -> None:
    """Lines that are no JSON, or other JSON, are passed over."""
    monitor = Monitor()
    monitor.control.pause(monitor.said.append)
    number = monitor.asked()["id"]
    monitor.answers(noise.replace(b"id", b"xx") + b'\n[1]\n3\nnull\n{"id":[]}\n' + b"[" * 2000 + b"\n")
    monitor.answers(json.dumps({"return": {}, "id": number}).encode() + b"\n")
    assert monitor.said == [None]
    monitor.close()


def test_too_long_a_line_ends_the_conversation(monitor: Monitor) -> None:
    """Nothing is kept without bound."""
    monitor.control.pause(monitor.said.append)
    monitor.qemu.setblocking(False)
    sent = 0
    while not monitor.said:
        try:
            sent += monitor.qemu.send(b"x" * 65536)
        except BlockingIOError:
            monitor.reactor.run_once(60)
        assert sent < 4 << 20
    assert monitor.said[0] is not None


def test_a_guests_numbers() -> None:
    """Read from the files as Linux writes them."""
    text = b"0.64 0.10\n0.50 0.1 0.1 1/30 40\nMemTotal: 1018288 kB\nMemFree: 1 kB\nMemAvailable: 967808 kB\n"
    assert read_guest(text) == Guest(0.64, 0.5, 1018288, 967808)


_WORDS = st.lists(st.sampled_from([b"nan", b"1", b"-1", b"MemTotal:", b"\n", b" ", b"9" * 400])).map(b"".join)


@given(st.binary(max_size=200) | _WORDS)
def test_what_a_guest_makes_up_is_none(text: bytes) -> None:
    """Anything else gives nothing, and never an error."""
    read_guest(b"1 1\n1 1\nMemTotal: " + text)
    assert read_guest(text) is None or b"MemTotal" in text
