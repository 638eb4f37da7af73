"""The control socket of a running domain: who is let in, what is answered, and that no client keeps the supervisor."""

from __future__ import annotations

import os
import socket
import struct
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from cloche.domain.control import talk, wire
from cloche.domain.control.adding import DiskAdd
from cloche.domain.control.client import Control
from cloche.domain.control.door import DOOR
from cloche.domain.control.fields import Nothing, load, read_fields, store, write_fields
from cloche.domain.control.joining import Attach, Exec, Words
from cloche.domain.control.life import AskLife, Kill, LogWait, Rename, Stop
from cloche.domain.control.server import MAX_CLIENTS
from cloche.domain.control.share_add import ShareAdd
from cloche.domain.control.share_list import Listed, ShareList, Shares
from cloche.domain.control.share_remove import ShareRemove
from cloche.domain.control.snapshot_save import SnapshotOutline, SnapshotSave
from cloche.domain.control.status import Ask, Status
from cloche.domain.launcher import Launcher
from cloche.domain.remote import RemoteLauncher, pack_error, send_message
from cloche.domain.timings import Timings
from cloche.errors import ClocheError, DomainError, MachineEndedError, ProtocolError, ShareError
from cloche.host.codec import Reader, Writer
from cloche.host.reactor import Reactor
from cloche.model.plan import Endpoint, EndpointKind, ProcessPlan
from cloche.model.request import Disk
from support.plans import plan, request, share
from support.wardens import PATIENCE_S, small_jail

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cloche.domain.control.fields import Message


class Domain:
    """A real launcher with a process that only waits, in a thread with its loop."""

    def __init__(self, directory: Path, driver: str = "bwrap") -> None:
        waiting = ProcessPlan("waiting", (b"/bin/sleep", b"600"), (b"PATH=/usr/bin",), (), small_jail())
        made = plan(request(b"prog", b"\xff", shares=(share("/srv/a"),)), driver=driver)._replace(
            endpoints=(Endpoint("control", EndpointKind.LISTEN),), processes=(waiting,), console=""
        )
        self.reactor = Reactor()
        self.launcher = Launcher(self.reactor, made, Timings())
        self.ends: list[ClocheError] = []
        self.launcher.ended = self.ends.append
        self.launcher.start()
        self.path = directory / "cloche" / self.launcher.ident / DOOR
        self._thread = threading.Thread(target=lambda: self.reactor.run_until(lambda: self._over))
        self._over = False
        self._thread.start()

    def close(self) -> None:
        """End it."""

        def over() -> None:
            self._over = True

        self.reactor.call_soon_threadsafe(over)
        self._thread.join(PATIENCE_S)
        self.launcher.close()
        self.reactor.close()

    @contextmanager
    def connection(self) -> Iterator[socket.socket]:
        """Provide a bare connection, for those who do not keep to the protocol."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as raw:
            raw.connect(str(self.path))
            raw.settimeout(PATIENCE_S)
            yield raw

    def answers(self) -> bool:
        """Tell whether an honest client is answered."""
        with Control(self.launcher.ident, PATIENCE_S) as control:
            return control.ask(Ask(), Status).driver == "bwrap"


@pytest.fixture
def domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Domain]:
    """Provide a running domain; nothing of it is left afterwards."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    before = set(os.listdir("/proc/self/fd"))
    made = Domain(tmp_path)
    yield made
    assert not made.ends
    made.close()
    assert set(os.listdir("/proc/self/fd")) == before
    assert list(tmp_path.glob("cloche/*")) == []


def test_a_domain_says_what_it_is(domain: Domain) -> None:
    """Driver, program as it was typed, and shares; a client may ask more than once."""
    with Control(domain.launcher.ident) as control:
        for _ in range(3):
            status = control.ask(Ask(), Status)
            assert status == Status((b"prog", b"\xff"), "bwrap", "namespaces", "", 0, 0, 1, False)
        listed = control.ask(ShareList(), Shares).shares
    assert listed == (Listed("/srv/a", "/srv/a", False, False),)


def test_a_host_programs_domain_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has its programs to itself is told why they are gone; the connection ends with the domain."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    made = Domain(tmp_path)
    with Control(made.launcher.ident) as control:
        control.ask(Stop(1000), Nothing)
        assert control.receive() == b""
    made.close()
    assert [error.message for error in made.ends] == ["the sandbox was ended from outside, by `cloche stop`"]
    assert list(tmp_path.glob("cloche/*")) == []


def test_errors_come_back_as_they_were_raised(domain: Domain, tmp_path: Path) -> None:
    """Class, sentence and hint of an error are the supervisor's; the connection goes on."""
    fd = os.open(tmp_path, os.O_PATH)
    with Control(domain.launcher.ident) as control:
        for ask in (ShareAdd("/srv/b", False), ShareRemove("/srv/a", False)):
            with pytest.raises(ShareError, match="bwrap driver cannot change what is shared") as raised:
                control.ask(ask, Nothing, (fd,) if isinstance(ask, ShareAdd) else ())
            assert raised.value.hint == "The qemu driver can; leave out --driver."
        assert control.ask(Ask(), Status).shares == 1
    os.close(fd)


@pytest.mark.parametrize(
    "packet, fds, message",
    [
        (b"", 0, None),
        (b"\x01", 0, "ends too early"),
        (b"\x01\xff\xff\xff\xff", 0, "ends too early"),
        (b"\x02\x06\0\0\0status", 0, "knows no request 'status'"),
        (b"\x01\x04\0\0\0nope", 0, "knows no request 'nope'"),
        (b"\x01\x02\0\0\0\x1b[", 0, "knows no request"),
        (b"\x01\x06\0\0\0status!", 0, "trailing bytes"),
        (b"\x01\x06\0\0\0status", 2, "comes with 2 descriptors"),
        (b"\x01\x09\0\0\0share-add\x01\0\0\0/\x01", 0, "comes with 0 descriptors"),
        (b"\x01\x09\0\0\0share-add\x01\0\0\0/\x07", 1, "truth value"),
        (b"\x01" + bytes(wire.MAX_PACKET), 0, "too long"),
        (b"\x01\x06\0\0\0status", 9, "too long"),
        (b"\x01\x04\0\0\0exec", 4, "ends too early"),
        (b"\x01\x04\0\0\0exec\0\0\0\0\0\0\0\0\0\0\0\0\0", 3, "comes with 3 descriptors"),
        (b"\x01\x04\0\0\0exec\0\0\0\0\0\0\0\0\0\0\0\0\0", 4, "cannot be used: Bad file"),
        (b"\x01\x06\0\0\0attach\0\0\0\0\0", 3, "uses the Python API"),
        (b"\x01\x04\0\0\0wait", 0, "uses the Python API"),
        (b"\x01\x04\0\0\0kill\xff\0\0\0", 0, "there is no signal"),
        (b"\x01\x06\0\0\0rename\x03\0\0\0../", 0, "cannot be a domain's name"),
    ],
)
def test_malformed_requests_are_refused(
    domain: Domain, tmp_path: Path, packet: bytes, fds: int, message: str | None
) -> None:
    """They get an error, their descriptors are closed, and everybody else is served."""
    with domain.connection() as raw, open(tmp_path / "x", "w") as directory:
        socket.send_fds(raw, [packet], [directory.fileno()] * fds)
        answer = raw.recv(wire.MAX_PACKET)
        if message is None:
            assert answer == b""
        else:
            with pytest.raises(ClocheError, match=message):
                wire.decode_answer(answer)
        assert domain.answers()
    assert domain.answers()


def test_a_client_that_does_not_read_costs_one_packet(domain: Domain) -> None:
    """It is not read from any more when its answers are not taken: what it sends stays in its own socket."""
    asking = wire.encode_request(Ask())
    with domain.connection() as raw:
        raw.setblocking(False)
        sent = 0
        while True:
            try:
                raw.send(asking)
                sent += 1
            except BlockingIOError:
                if not domain.answers():
                    raise
                try:
                    raw.send(asking)
                except BlockingIOError:
                    break
        assert domain.answers()
        raw.settimeout(PATIENCE_S)
        for _ in range(sent):
            wire.decode_answer(raw.recv(wire.MAX_PACKET))
    assert domain.answers()


def test_clients_that_leave_or_are_too_many_keep_nobody_out(domain: Domain) -> None:
    """One that goes without a word is forgotten; of too many the last wait until another one has gone."""
    for _ in range(3 * MAX_CLIENTS):
        with domain.connection() as raw:
            raw.send(wire.encode_request(Ask()))
    assert domain.answers()
    crowd = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(MAX_CLIENTS + 1)]
    for one in crowd:
        one.connect(str(domain.path))
        one.settimeout(PATIENCE_S)
    for one in crowd:
        one.send(wire.encode_request(Ask()))
    for one in crowd[:-1]:
        wire.decode_answer(one.recv(wire.MAX_PACKET))
    crowd[-1].setblocking(False)
    with pytest.raises(BlockingIOError):
        crowd[-1].recv(1)
    crowd[-1].settimeout(PATIENCE_S)
    crowd[0].close()
    wire.decode_answer(crowd[-1].recv(wire.MAX_PACKET))
    for one in crowd:
        one.close()
    assert domain.answers()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask as somebody else")
def test_another_user_is_not_let_in(domain: Domain, tmp_path: Path) -> None:
    """Not through the directory; and not by the supervisor, where the directory is open. As its owner one is."""
    for path in (tmp_path, *tmp_path.parents):
        if path.owner() == "root" and path != path.parent:
            # Nothing is taken away: one of them is everybody's /tmp.
            path.chmod(path.stat().st_mode | 0o055)
    (tmp_path / "cloche").chmod(0o755)
    path = domain.path

    def ask_as(uid: int) -> bytes | int:
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.setresuid(uid, uid, uid)
            raw = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                raw.connect(str(path))
                raw.send(wire.encode_request(Ask()))
                os.write(writer, raw.recv(9) or b"sent away")
            except OSError as error:
                os.write(writer, str(error.errno).encode())
            os._exit(0)
        os.close(writer)
        with open(reader, "rb") as said:
            answer = said.read()
        os.wait()
        return int(answer) if answer.isdigit() else answer

    assert ask_as(12345) == 13
    path.parent.chmod(0o755)
    path.chmod(0o777)
    assert ask_as(12345) in (b"sent away", 32, 104)
    assert ask_as(os.geteuid())[:2] == b"\x01\x00"  # type: ignore[index]


@pytest.mark.parametrize(
    "asked",
    [
        Ask(),
        ShareList(),
        ShareAdd("/a\n\udcff", True),
        ShareRemove("/\x1b[31m", False),
        AskLife(),
        Stop(10_000),
        Kill(15),
        Rename("web"),
        LogWait(1 << 40),
        DiskAdd.of(Disk("data", "/a\udcff", most_bytes=1 << 40)),
        DiskAdd.of(Disk("data", "/dev/x", "qcow2", writable=False, most_bytes=None)),
        SnapshotOutline("/a\udcff"),
        SnapshotSave("/a\udcff", "title", True),
        Exec(True, 24, 80, "root", "/tmp/\udcff"),
        Attach(False, 0, 0),
    ],
)
def test_requests_survive_the_wire(asked: Message) -> None:
    """What was asked is what is read, names of any bytes included; every shorter packet is refused."""
    packet = wire.encode_request(asked)
    known = (wire.REQUESTS | wire.CONVERSATIONS).values()
    (descriptors,) = {count for _, name, count in known if name == type(asked).__name__}
    assert wire.decode_request(packet, descriptors) == asked
    for end in range(len(packet)):
        with pytest.raises(ClocheError):
            wire.decode_request(packet[:end], descriptors)


def test_answers_and_errors_survive_the_wire() -> None:
    """So do answers; of an error too long for a packet the beginning."""
    said = Shares((Listed("/a\n", "/b\udcfe", True, False), Listed("", "", False, True)))
    writer = Writer()
    write_fields(writer, said)
    assert read_fields(Shares, Reader(writer.finish())) == said
    assert wire.read_answer(wire.encode_answer(Nothing()), Nothing) == Nothing()
    long = DomainError("m" * 99999, hint="h" * 99999, detail=("d" * 99999,) * 99)
    packet = wire.encode_failure(long)
    assert len(packet) <= wire.MAX_PACKET
    with pytest.raises(DomainError, match=r"^m+$"):
        wire.decode_answer(packet)
    with pytest.raises(ProtocolError):
        wire.encode_answer(Shares((Listed("t" * 40000, "s" * 40000, False, False),)))
    with pytest.raises(ClocheError, match="no class of errors"):
        wire.decode_answer(struct.pack("<BBI2sI18sII", 1, 1, 2, b"os", 18, b"no class of errors", 0, 0))


def test_words_survive_the_file_and_others_are_refused(tmp_path: Path) -> None:
    """As long as a packet never is; a pipe, a damaged file and one that is too large are none."""
    words = Words((b"prog", b"\xff\n", b"x" * 200_000), ((b"NAME", b"a=b"), (b"E", b"")))
    fd = store(words)
    assert load(Words, fd) == words
    os.ftruncate(fd, 100)
    with pytest.raises(ProtocolError, match="ends too early"):
        load(Words, fd)
    os.ftruncate(fd, 9 << 20)
    with pytest.raises(ProtocolError, match="too long"):
        load(Words, fd)
    os.close(fd)
    for end in os.pipe():
        with pytest.raises(ProtocolError, match="in no file"):
            load(Words, end)
        os.close(end)


_ORDERS = (
    talk.Order(talk.SIGNAL, 15),
    talk.Order(talk.RESIZE, 24, 80),
    talk.Order(talk.RAW, modes=bytes(range(72))),
    talk.Order(talk.RESTORED),
    talk.Order(talk.CONTINUE),
)


def test_what_is_said_in_a_conversation_survives_the_wire() -> None:
    """Events and orders come back; everything shorter, longer or unknown is refused."""
    for event in (
        talk.Event(talk.STOPPED, 20),
        talk.Event(talk.EXITED, 9, True, True),
        talk.Event(talk.LET_GO),
    ):
        packet = talk.encode_event(event)
        assert (talk.decode_event(packet), talk.is_event(packet)) == (event, True)
        for other in (packet[:-1], packet + b"x", b"\x02" + packet[1:], b"\x01\x09" + packet[2:]):
            with pytest.raises(ProtocolError):
                talk.decode_event(other)
    assert talk.Event(talk.EXITED, 9, True).status == 137
    for order in _ORDERS:
        packet = talk.encode_order(order)
        assert talk.decode_order(packet) == order
        for other in (packet[:-1], packet + b"x", b"\x02" + packet[1:], b"\x01\x09" + packet[2:], b""):
            with pytest.raises(ProtocolError):
                talk.decode_order(other)
    for signo in (0, 65, 1 << 31):
        with pytest.raises(ProtocolError, match="no signal"):
            talk.decode_order(talk.encode_order(talk.Order(talk.SIGNAL, signo)))


def test_a_domain_that_is_gone_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its socket, a domain cannot be asked, and the error says so."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(DomainError, match="the domain 0123 has ended, or has not begun yet"):
        Control("0123")


def test_a_domain_that_listens_no_more_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that nobody listens on is that of a domain that is about to go: nobody who waits for that is refused."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    door = tmp_path / "cloche" / "0123" / DOOR
    door.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(door))
    with pytest.raises(DomainError, match="the domain 0123 has ended, or has not begun yet"):
        Control("0123")


def test_the_end_heard_while_connecting_anew_is_told_as_ever() -> None:
    """A program of the API that reaches for a guest that is gone hears why in the loop, and nothing is raised there."""
    reason = MachineEndedError("the machine is gone", hint="none")
    heard: list[ClocheError] = []
    ours, theirs = socket.socketpair()
    with Reactor() as reactor, theirs:
        launcher = RemoteLauncher(reactor, plan(request()), Timings())
        launcher.ended = heard.append
        launcher._socket = ours
        send_message(theirs, ("ended", pack_error(reason)))
        with pytest.raises(OSError, match="the machine is gone"):
            launcher.connect()
        assert heard == []
        reactor.run_until(lambda: bool(heard), 10)
        with pytest.raises(OSError, match="has ended"):
            launcher.connect()
    assert [type(error) for error in heard] == [MachineEndedError]
    assert heard[0].message == reason.message
