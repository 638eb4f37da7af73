"""The process of a guest's sockets with an honest guest and with others: streams both ways, windows, ends, floods."""

from __future__ import annotations

import socket
import subprocess
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from cloche.host.tools import require_own_binary
from support.vhost import EVENT_IDX, NEXT, Descriptor
from support.vsocks import (
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    GUEST,
    MOST,
    NO_MORE_RECEIVED,
    NO_MORE_SENT,
    REQUEST,
    RESPONSE,
    ROOM,
    RST,
    RW,
    SEND,
    SHUTDOWN,
    Machine,
    Packet,
    machine,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Machine]:
    """Provide a device with an honest guest."""
    with machine(tmp_path) as made:
        yield made


def read(program: socket.socket, count: int) -> bytes:
    """Receive so many bytes."""
    got = b""
    while len(got) < count:
        piece = program.recv(count - len(got))
        assert piece, "the stream has ended"
        got += piece
    return got


def offered(talk: Machine, program: socket.socket, port: int = 1234) -> int:
    """Have the guest accept a program of the host; return the host's port."""
    asked = talk.guest.hear()
    assert (asked.guest, asked.op) == (port, REQUEST)
    talk.guest.say(Packet(asked.host, port, RESPONSE))
    line = b"OK %d\n" % asked.host
    assert read(program, len(line)) == line
    return asked.host


@pytest.mark.parametrize("features", [0, EVENT_IDX])
def test_a_program_of_the_host_connects(tmp_path: Path, features: int) -> None:
    """CONNECT is handed on, OK comes back, bytes go both ways, and those behind the line are the first."""
    with machine(tmp_path, features=features) as talk, talk.knock(b"CONNECT 1234\nearly") as program:
        host = offered(talk, program)
        first = talk.guest.hear()
        assert first[:4] == (host, 1234, RW, b"early")
        assert first.room == ROOM
        program.sendall(b"x" * 10_000)
        got = b""
        while len(got) < 10_000:
            got += talk.guest.hear().data
        assert got == b"x" * 10_000
        talk.guest.say(Packet(host, 1234, RW, b"answer"))
        assert read(program, 6) == b"answer"


def test_a_program_of_the_guest_connects(talk: Machine) -> None:
    """The supervisor is asked, one at a time; a stream is accepted, none is refused, and no other ends by that."""
    with talk.connect(5000) as program:
        talk.guest.say(Packet(80, 5000, RW, b"hello"))
        assert read(program, 5) == b"hello"
        talk.guest.say(Packet(81, 5001, REQUEST))
        assert talk.asked() == 81
        talk.guest.say(Packet(82, 5002, REQUEST))
        talk.answer(None)
        assert talk.guest.hear()[:3] == (81, 5001, RST)
        assert talk.asked() == 82
        talk.answer(None)
        assert talk.guest.hear()[:3] == (82, 5002, RST)
        program.sendall(b"still here")
        assert talk.guest.hear().data == b"still here"


def test_a_packet_in_many_parts_is_whole(talk: Machine) -> None:
    """What Linux sends of a program's own pages lies in one part for each: header and bytes may be cut anywhere."""
    with talk.connect(5000) as program:
        talk.guest.offer(Packet(80, 5000, RW, bytes(range(200))), head=0)
        talk.guest.frontend.wait(SEND)
        assert read(program, 200) == bytes(range(200))
        frontend = talk.guest.frontend
        whole = bytes(frontend.memory[0x10_0000 : 0x10_0000 + 244])
        cuts = (0, 10, 44, 45, 100, 244)
        for index, (start, end) in enumerate(pairwise(cuts)):
            place = 0x20_0000 + index * 0x1000
            frontend.memory[place : place + end - start] = whole[start:end]
            flags = NEXT if end < 244 else 0
            frontend.put_descriptor(index, Descriptor(place, end - start, flags, index + 1), SEND)
        frontend.offer(0, SEND)
        frontend.wait(SEND)
        assert read(program, 200) == bytes(range(200))


@pytest.mark.parametrize(
    "line",
    [b"HELLO\n", b"CONNECT\n", b"CONNECT +5\n", b"CONNECT 4294967295\n", b"CONNECT 99999999999\n", b"C" * 32],
)
def test_another_line_ends_it(talk: Machine, line: bytes) -> None:
    """Whoever says something else than CONNECT and a port is hung up on, and the guest hears nothing of it."""
    with talk.knock(line) as program:
        assert program.recv(1) == b""
    with talk.knock(b"CONNECT 7\r\n") as program:
        offered(talk, program, 7)


def test_a_guest_that_refuses(talk: Machine) -> None:
    """Where nobody listens in the guest, the program's stream is closed."""
    with talk.knock() as program:
        asked = talk.guest.hear()
        talk.guest.say(Packet(asked.host, 1234, RST))
        assert program.recv(1) == b""


def test_each_direction_ends_for_itself(talk: Machine) -> None:
    """Either side may say that it sends no more, and still hear the other; the guest's end of both is confirmed."""
    with talk.connect(5000) as program:
        program.shutdown(socket.SHUT_WR)
        ended = talk.guest.hear()
        assert (ended.op, ended.flags) == (SHUTDOWN, NO_MORE_SENT)
        talk.guest.say(Packet(80, 5000, RW, b"late"))
        assert read(program, 4) == b"late"
        talk.guest.say(Packet(80, 5000, SHUTDOWN, flags=NO_MORE_SENT | NO_MORE_RECEIVED))
        assert talk.guest.hear().op == RST
        assert program.recv(1) == b""
    with talk.connect(5001) as program:
        talk.guest.say(Packet(80, 5001, SHUTDOWN, flags=NO_MORE_SENT))
        assert program.recv(1) == b""
        program.sendall(b"more")
        assert talk.guest.hear().data == b"more"
    # That it has gone may be seen after that it says no more.
    while (gone := talk.guest.hear()).flags != NO_MORE_SENT | NO_MORE_RECEIVED:
        assert (gone.op, gone.flags) == (SHUTDOWN, NO_MORE_SENT)
    talk.guest.say(Packet(80, 5001, RW, b"to nobody"))
    assert talk.guest.hear().op == RST


def test_what_was_sent_before_the_end_arrives(talk: Machine) -> None:
    """A guest that sends and ends at once loses nothing, however late the program of the host reads."""
    with talk.connect(5000) as program:
        program.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sent = b""
        while len(sent) < 3 * ROOM:
            # As much as the device says there is room for: what the socket holds, and then its own.
            piece = bytes([len(sent) >> 12 & 0xFF]) * 4096
            talk.guest.say(Packet(80, 5000, RW, piece))
            sent += piece
            if len(sent) % (ROOM // 2) == 0:
                talk.guest.say(Packet(80, 5000, CREDIT_REQUEST))
                while (told := talk.guest.hear()).op != CREDIT_UPDATE:
                    pass
                if len(sent) - told.taken > told.room - ROOM // 2:
                    break
        talk.guest.say(Packet(80, 5000, SHUTDOWN, flags=NO_MORE_SENT | NO_MORE_RECEIVED))
        while talk.guest.hear().op != RST:
            pass
        assert read(program, len(sent)) == sent
        assert program.recv(1) == b""


def test_the_guests_window_holds(talk: Machine) -> None:
    """No more is sent than the guest has room for; then it is asked, and what it says later counts."""
    talk.guest.say(Packet(80, 5000, REQUEST, room=100))
    talk.asked()
    program, theirs = socket.socketpair()
    theirs.setblocking(False)
    with program, theirs:
        talk.answer(theirs)
        assert talk.guest.hear().op == RESPONSE
        program.sendall(b"y" * 250)
        assert talk.guest.hear().data == b"y" * 100
        assert talk.guest.hear().op == CREDIT_REQUEST
        talk.guest.say(Packet(80, 5000, CREDIT_UPDATE, room=100, taken=100))
        assert talk.guest.hear().data == b"y" * 100
        assert talk.guest.hear().op == CREDIT_REQUEST
        # More taken than was sent: that makes no sense, and there is no room.
        talk.guest.say(Packet(80, 5000, CREDIT_UPDATE, room=100, taken=1 << 31))
        assert talk.guest.hear().op == CREDIT_REQUEST
        talk.guest.say(Packet(80, 5000, CREDIT_UPDATE, room=100, taken=200))
        assert talk.guest.hear().data == b"y" * 50


def test_a_guest_that_sends_too_much_has_broken_its_stream(talk: Machine) -> None:
    """Past the room it was told the stream is over; the process has grown by that much and no more."""
    with talk.connect(5000) as program, talk.connect(5001) as other:
        before = talk.running.memory_kib()
        piece = b"z" * (64 << 10)
        # As much as the socket holds, as much as was promised, and more.
        for _ in range(16):
            talk.guest.say(Packet(80, 5000, RW, piece))
        while talk.guest.hear().op != RST:
            pass
        assert talk.running.memory_kib() <= before + 2 * ROOM // 1024
        assert program.recv(1) == b"z"
        talk.guest.say(Packet(80, 5001, RW, b"fine"))
        assert read(other, 4) == b"fine"


def test_packets_of_no_stream_are_refused(talk: Machine) -> None:
    """Whatever is said about a stream that is not there, of another kind, or cut off, is answered with a reset."""
    for op in (RESPONSE, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST, 0, 99):
        talk.guest.say(Packet(80, 9, op))
        assert talk.guest.hear()[:3] == (80, 9, RST)
    talk.guest.say(Packet(80, 9, REQUEST), kind=2)
    assert talk.guest.hear()[:3] == (80, 9, RST)
    # Answers to answers would have no end; and nobody is answered under another's address.
    talk.guest.say(Packet(80, 9, RST))
    talk.guest.say(Packet(80, 9, REQUEST), src=GUEST + 1)
    with talk.connect(5000) as program:
        talk.guest.say(Packet(80, 5000, RW, b"short"), length=5000)
        assert talk.guest.hear()[:3] == (80, 5000, RST)
        assert program.recv(1) == b""


def test_a_flood_of_streams_costs_what_was_planned(talk: Machine) -> None:
    """So many streams and no more: the guest's next is refused, the host's next waits; and one gone makes room."""
    with talk.connect(1) as last:
        programs = [talk.connect(guest) for guest in range(2, MOST + 1)]
        talk.guest.say(Packet(80, MOST + 1, REQUEST))
        assert talk.guest.hear()[:3] == (80, MOST + 1, RST)
        with talk.knock() as waiting:
            talk.guest.say(Packet(80, 1, RST))
            assert last.recv(1) == b""
            offered(talk, waiting)
        for program in programs:
            program.close()


def test_a_flood_of_nonsense_costs_nothing(talk: Machine) -> None:
    """A guest that says nonsense and takes no answers is taken no more of; when it does, it goes on; nothing grows."""
    frontend = talk.guest.frontend
    before = talk.running.memory_kib()
    for _ in range(40):
        for head in range(100):
            talk.guest.offer(Packet(80, 9, RW), head=head)
        answers = 0
        while answers < 100:
            assert talk.guest.hear().op == RST
            answers += 1
        frontend.wait(SEND)
    assert talk.running.memory_kib() <= before + 256


def test_streams_that_are_asked_for_and_given_up_cost_nothing(talk: Machine) -> None:
    """A guest that asks and gives up again and again, while the supervisor is slow, is asked for once at a time."""
    frontend = talk.guest.frontend
    for head in range(0, 100, 2):
        talk.guest.offer(Packet(80, head, REQUEST), head=head)
        talk.guest.offer(Packet(80, head, RST), head=head + 1)
    frontend.wait(SEND)
    before = talk.running.memory_kib()
    for _ in range(1500):
        for head in range(100):
            frontend.offer(head, SEND)
        frontend.wait(SEND)
    assert talk.running.memory_kib() <= before + 128
    assert talk.asked() == 80
    talk.answer(None)
    with talk.connect(5000) as program:
        talk.guest.say(Packet(80, 5000, RW, b"fine"))
        assert read(program, 4) == b"fine"


def test_a_supervisor_that_has_gone(talk: Machine) -> None:
    """Without it nobody is found for the guest; programs of the host still get in."""
    talk.guest.say(Packet(80, 5000, REQUEST))
    talk.supervisor.close()
    assert talk.guest.hear()[:3] == (80, 5000, RST)
    talk.guest.say(Packet(80, 5001, REQUEST))
    assert talk.guest.hear()[:3] == (80, 5001, RST)
    with talk.knock() as program:
        offered(talk, program)


@pytest.mark.parametrize(
    "words, status, said",
    [
        (["--cid", "3"], 2, "--fd is required"),
        (["--fd", "0", "--cid", "2"], 2, '--cid does not take "2"'),
        (["--fd", "0", "--cid", "4294967295"], 2, '--cid does not take "4294967295"'),
        (["--fd", "0", "--cid", "3"], 1, "--fd names no Unix stream socket"),
    ],
)
def test_a_wrong_command_line_is_named(words: list[str], status: int, said: str) -> None:
    """It ends with one sentence."""
    argv = [require_own_binary("cloche-vsock"), *words]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (status, f"cloche-vsock: {said}\n")
