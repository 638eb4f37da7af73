"""The session against the real agent: streams, statuses, signals, ends, and how fast it is."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import time
import tty
from typing import TYPE_CHECKING

import pytest

from cloche.errors import DomainError
from cloche.guest.messages import KIND_SIGNAL, SetupDone, SetupFailed
from cloche.guest.session import STDOUT
from cloche.host.reactor import READ
from cloche.model.guest import Mkdir, Mount, WriteFile
from support.agents import PATIENCE_S, Guest, agent, command, guest, shell

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Guest]:
    """Provide an attached session with an agent of its own."""
    with agent(tmp_path) as path, guest(path) as made:
        yield made


def test_stdout_and_stderr_are_separate(box: Guest) -> None:
    """What a program writes to each stream arrives there, byte for byte."""
    assert box.run(shell("echo out; echo err >&2; printf '\\0\\377'")) == (0, b"out\n\0\xff", b"err\n")


def test_stderr_can_share_stdout(box: Guest) -> None:
    """With one stream for both, what is written to either keeps its order."""
    out = bytearray()
    script = "for i in 1 2 3; do echo out$i; echo err$i >&2; done"
    assert box.wait(box.start(shell(script), stdout=out.extend, stderr=STDOUT)) == 0
    assert out == b"out1\nerr1\nout2\nerr2\nout3\nerr3\n"


def test_stdin_and_its_end_reach_the_program(box: Guest) -> None:
    """The program reads what was given and then the end of file."""
    assert box.run(command("wc", "-c"), b"x" * 300_000) == (0, b"300000\n", b"")
    assert box.run(command("cat"), b"") == (0, b"", b"")


def test_without_streams_a_program_has_dev_null(box: Guest) -> None:
    """No stdin is the end of file at once, no stdout swallows."""
    assert box.wait(box.start(shell("cat; echo gone"))) == 0


@pytest.mark.parametrize("status", [0, 1, 126, 127, 255])
def test_exit_statuses_are_exact(box: Guest, status: int) -> None:
    """The program's status comes back as it was."""
    assert box.run(shell(f"exit {status}"))[0] == status


def test_a_signal_is_told_from_a_status(box: Guest) -> None:
    """A program killed by a signal is reported as that, and as 128+N."""
    job = box.start(shell("kill -TERM $$"))
    assert box.wait(job) == 128 + signal.SIGTERM
    assert job.exited is not None
    assert (job.exited.kind, job.exited.value) == (KIND_SIGNAL, signal.SIGTERM)


@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGKILL])
def test_signals_reach_the_program(box: Guest, signo: int) -> None:
    """A signal sent from the host ends the program in the guest by that signal."""
    out = bytearray()
    job = box.start(shell("echo up; exec sleep 1000"), stdout=out.extend)
    assert box.reactor.run_until(lambda: out == b"up\n", PATIENCE_S)
    job.signal(signo)
    assert box.wait(job) == 128 + signo


@pytest.mark.parametrize("program, number", [("/no/such/program", 2), ("/etc/passwd", 13)])
def test_what_cannot_be_started_fails_with_its_errno(box: Guest, program: str, number: int) -> None:
    """A program that is missing or not executable is FAILED with the errno of exec."""
    job = box.start(command(program), stdin=b"x", stdout=bytearray().extend)
    assert box.reactor.run_until(lambda: job.done, PATIENCE_S)
    assert job.failure is not None
    assert job.failure.errno == number
    assert box.run(shell("echo alive"))[1] == b"alive\n"


def test_a_missing_directory_is_a_failure(box: Guest) -> None:
    """A working directory that does not exist starts nothing."""
    job = box.start(command("true")._replace(cwd=b"/no/such/directory"))
    assert box.reactor.run_until(lambda: job.done, PATIENCE_S)
    assert job.failure is not None
    assert job.failure.errno == 2


def test_arguments_and_environment_are_any_bytes(box: Guest) -> None:
    """Spaces, quotes, newlines, empty words and bytes that are not UTF-8 arrive unchanged."""
    words = (b"a b", b"'\"", b"\n", b"", b"\xff\xfe", b"$(x)")
    what = command("printf", "%s|", *words)
    assert box.run(what) == (0, b"".join(word + b"|" for word in words), b"")
    what = command("env")._replace(env=(b"PATH=/usr/bin:/bin", b"X=\xff\n "))
    assert b"X=\xff\n \n" in box.run(what)[1]


def test_a_reader_that_leaves_ends_the_writer(box: Guest) -> None:
    """``yes | head -1``: when the reader of stdout goes, the program gets SIGPIPE."""
    reading, writing = os.pipe()
    job = box.start(command("yes"), stdout=writing)
    os.close(writing)
    box.reactor.register(reading, READ, lambda _events: leave())
    got = bytearray()

    def leave() -> None:
        got.extend(os.read(reading, 2))
        box.reactor.unregister(reading)
        os.close(reading)

    assert box.wait(job) == 128 + signal.SIGPIPE
    assert got == b"y\n"


def test_a_reader_that_leaves_an_idle_writer_is_noticed(box: Guest) -> None:
    """The program learns at its next write that nobody reads, although nothing was on the way."""
    reading, writing = os.pipe()
    out = bytearray()
    job = box.start(
        shell("echo up >&2; read x; sleep 0.1; echo a; sleep 0.1; echo b; echo still >&2"),
        stdin=(source := Faucet()).take, stdout=writing, stderr=out.extend,
    )  # fmt: skip
    os.close(writing)
    assert box.reactor.run_until(lambda: out == b"up\n", PATIENCE_S)
    os.close(reading)
    box.reactor.run_once(0)
    source.more(b"go\n")
    assert job.stdin is not None
    job.stdin.update()
    assert box.wait(job) == 128 + signal.SIGPIPE
    assert out == b"up\n"


class Faucet:
    """A source that gives bytes when it has been given some."""

    def __init__(self) -> None:
        self.held = b""

    def more(self, data: bytes) -> None:
        """Have this ready."""
        self.held += data

    def take(self, size: int) -> bytes | None:
        """Give what is there."""
        data, self.held = self.held[:size], self.held[size:]
        return data or None


def test_a_program_that_stops_reading_ends_the_host_writer(box: Guest) -> None:
    """``yes | cloche head -1``: when the program stops reading, the writer on the host gets SIGPIPE."""
    writer = subprocess.Popen(["yes"], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    out = bytearray()
    job = box.start(command("head", "-1"), stdin=writer.stdout.fileno(), stdout=out.extend)
    writer.stdout.close()
    assert box.wait(job) == 0
    assert out == b"y\n"
    assert writer.wait(PATIENCE_S) == -signal.SIGPIPE


def test_a_stream_nobody_reads_blocks_no_other(box: Guest) -> None:
    """While stdout of one program stands still, its stderr and other programs go on."""
    reading, writing = os.pipe()
    err = bytearray()
    stuck = box.start(shell("yes | head -c 3000000 & echo here >&2; wait"), stdout=writing, stderr=err.extend)
    os.close(writing)
    assert box.reactor.run_until(lambda: err == b"here\n", PATIENCE_S)
    assert box.run(command("head", "-c", "1000000", "/dev/zero"))[1] == bytes(1_000_000)
    assert not stuck.done
    got = bytearray()
    box.reactor.register(reading, READ, lambda _events: got.extend(os.read(reading, 65536)))
    assert box.wait(stuck) == 0
    box.reactor.unregister(reading)
    while data := os.read(reading, 65536):
        got += data
    assert got == b"y\n" * 1_500_000
    os.close(reading)


def test_every_kind_of_file_works_as_a_standard_stream(box: Guest, tmp_path: Path) -> None:
    """Regular files, appended to where they stand, and /dev/null."""
    (tmp_path / "in").write_bytes(b"content")
    source = os.open(tmp_path / "in", os.O_RDONLY)
    sink = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    null = os.open("/dev/null", os.O_RDWR)
    os.write(sink, b"before ")
    assert box.wait(box.start(command("cat"), stdin=source, stdout=sink, stderr=null)) == 0
    os.write(sink, b" after")
    assert (tmp_path / "out").read_bytes() == b"before content after"
    assert box.wait(box.start(command("cat"), stdin=null, stdout=null)) == 0
    for fd in (source, sink, null):
        os.close(fd)


def test_a_terminal(box: Guest) -> None:
    """With a terminal the program has a pty of the size asked for, and learns of a new size."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    got = bytearray()
    box.reactor.register(master, READ, lambda _events: got.extend(os.read(master, 4096)))
    script = "stty size; trap 'stty size; exit 3' WINCH; echo ready; while :; do read x; done"
    job = box.session.exec(shell(script), stdin=slave, stdout=slave, terminal=(24, 80))
    assert box.reactor.run_until(lambda: b"ready" in got, PATIENCE_S)
    job.resize(30, 100)
    assert box.wait(job) == 3
    assert box.reactor.run_until(lambda: b"30 100" in got, PATIENCE_S)
    assert got.replace(b"\r", b"") == b"24 80\nready\n30 100\n"
    assert not fcntl.fcntl(slave, fcntl.F_GETFL) & os.O_NONBLOCK
    box.reactor.unregister(master)
    os.close(master)
    os.close(slave)


def test_stop_and_continue_are_told(box: Guest) -> None:
    """Ctrl-Z inside a terminal is reported, and so is its continuation."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    out = bytearray()
    box.reactor.register(master, READ, lambda _events: out.extend(os.read(master, 4096)))
    job = box.session.exec(
        shell("echo ready; read x; echo got $x"), stdin=slave, stdout=slave, terminal=(24, 80)
    )
    stopped: list[int] = []
    continued: list[bool] = []
    job.on_stopped = lambda _job, signo: stopped.append(signo)
    job.on_continued = lambda _job: continued.append(True)
    assert box.reactor.run_until(lambda: b"ready" in out, PATIENCE_S)
    os.write(master, b"\x1a")
    assert box.reactor.run_until(lambda: bool(stopped), PATIENCE_S)
    assert stopped == [signal.SIGTSTP]
    job.signal(signal.SIGCONT)
    assert box.reactor.run_until(lambda: bool(continued), PATIENCE_S)
    os.write(master, b"hello\r")
    assert box.wait(job) == 0
    assert box.reactor.run_until(lambda: b"got hello" in out, PATIENCE_S)
    box.reactor.unregister(master)
    os.close(master)
    os.close(slave)


def test_set_up_steps_and_their_failure(box: Guest, tmp_path: Path) -> None:
    """Steps are done in order; the first that fails is named and ends it."""
    answers: list[SetupDone | SetupFailed] = []
    path = os.fsencode(tmp_path / "deep" / "file")
    uid, gid = os.getuid(), os.getgid()
    box.session.setup(
        [Mkdir(os.path.dirname(path), 0o750, uid, gid), WriteFile(path, 0o640, uid, gid, b"text")],
        answers.append,
    )
    missing = Mount(b"nonesuch", b"none", b"/no/such/place")
    box.session.setup([missing, WriteFile(path, 0o600, uid, gid, b"not this")], answers.append)
    assert box.reactor.run_until(lambda: len(answers) == 2, PATIENCE_S)
    assert isinstance(answers[0], SetupDone)
    assert isinstance(answers[1], SetupFailed)
    assert answers[1].step == 0
    assert answers[1].errno != 0
    assert (tmp_path / "deep" / "file").read_bytes() == b"text"
    assert (tmp_path / "deep").stat().st_mode & 0o777 == 0o750


def test_sync_is_answered(box: Guest) -> None:
    """SYNC comes back once everything is written."""
    answers: list[bool] = []
    box.session.sync(lambda: answers.append(True))
    assert box.reactor.run_until(lambda: bool(answers), PATIENCE_S)


def test_many_programs_at_once(box: Guest) -> None:
    """Fifty programs run side by side, each with its own streams."""
    outs = [bytearray() for _ in range(50)]
    jobs = [
        box.start(command("cat"), stdin=b"%d" % index * 10_000, stdout=out.extend)
        for index, out in enumerate(outs)
    ]
    assert [box.wait(job) for job in jobs] == [0] * 50
    assert all(out == b"%d" % index * 10_000 for index, out in enumerate(outs))


def test_an_agent_that_dies_is_lost(box: Guest) -> None:
    """When the agent is gone, the session says so instead of waiting."""
    job = box.start(shell("kill -KILL $PPID; sleep 1000"))
    assert box.reactor.run_until(lambda: bool(box.lost), PATIENCE_S)
    assert isinstance(box.lost[0], DomainError)
    assert not job.done


def test_throughput(box: Guest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file goes through ``cat`` unchanged; how fast is printed."""
    size = 256 << 20
    block = os.urandom(1 << 20)
    path = tmp_path / "big"
    with path.open("wb") as file:
        for _ in range(size >> 20):
            file.write(block)
    reader = subprocess.Popen(["cmp", path, "-"], stdin=subprocess.PIPE)
    assert reader.stdin is not None
    with path.open("rb") as file:
        begin = time.monotonic()
        job = box.start(command("cat"), stdin=file.fileno(), stdout=reader.stdin.fileno())
        reader.stdin.close()
        assert box.wait(job) == 0
    assert reader.wait(PATIENCE_S) == 0
    took = time.monotonic() - begin
    with capsys.disabled():
        print(f"\nstdin to stdout through cat: {size / took / 1e6:.0f} MB/s")  # noqa: T201


def test_echo_latency(box: Guest, capsys: pytest.CaptureFixture[str]) -> None:
    """A byte sent to ``cat`` comes back; how fast is printed."""
    near, far = os.pipe()
    back, out = os.pipe()
    job = box.start(command("cat"), stdin=near, stdout=out)
    os.close(near)
    os.close(out)
    times: list[float] = []
    got: list[bytes] = []
    box.reactor.register(back, READ, lambda _events: got.append(os.read(back, 10)))
    for index in range(200):
        begin = time.monotonic()
        os.write(far, b"%d" % (index % 10))
        assert box.reactor.run_until(lambda: bool(got), PATIENCE_S)
        times.append(time.monotonic() - begin)
        assert got.pop() == b"%d" % (index % 10)
    box.reactor.unregister(back)
    os.close(far)
    assert box.wait(job) == 0
    os.close(back)
    with capsys.disabled():
        print(f"\necho of one byte: {sorted(times)[100] * 1e6:.0f} us")  # noqa: T201
