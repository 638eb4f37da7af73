"""The entropy device with an honest guest: random bytes, start and end, command line."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cloche.host.tools import require_own_binary
from support import vhost
from support.vhost import EVENT_IDX, NEXT, QUEUE_SIZE, WRITABLE, Descriptor, DeviceProcess, Frontend, device

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOM = 0x10_0000


@contextmanager
def machine(features: int = 0, protocol: int = 0) -> Iterator[tuple[DeviceProcess, Frontend]]:
    """Provide an entropy device with a frontend; the process must end with its frontend, with status 0."""
    with device("cloche-rng") as running:
        frontend = Frontend(running.connection, 1)
        frontend.shake_hands(features, protocol)
        yield running, frontend
        frontend.close()
        assert running.process.wait(vhost.PATIENCE_S) == 0


def ask(frontend: Frontend, *lengths: int) -> bytes:
    """Ask for random bytes in buffers of these lengths; return what was written."""
    for index, length in enumerate(lengths):
        last = index == len(lengths) - 1
        flags = WRITABLE | (0 if last else NEXT)
        frontend.put_descriptor(index, Descriptor(ROOM + sum(lengths[:index]), length, flags, index + 1), 0)
    frontend.offer(0, 0)
    return frontend.memory[ROOM : ROOM + frontend.wait(0)]


@pytest.mark.parametrize("features", [0, EVENT_IDX])
def test_random_bytes_come(features: int) -> None:
    """Every request is answered in full with other bytes than the last."""
    with machine(features) as (_, frontend):
        answers = {ask(frontend, 64) for _ in range(300)}
        assert len(answers) == 300
        assert {len(answer) for answer in answers} == {64}
        assert len(ask(frontend, 10, 300, 1)) == 311


def test_it_looks_for_the_next_request_and_then_sleeps() -> None:
    """When nothing has come for a while after a request, the device sleeps, and stays asleep."""
    with machine() as (running, frontend):
        for _ in range(3):
            assert len(ask(frontend, 64)) == 64
            status = Path(f"/proc/{running.process.pid}/status")
            while "State:\tS" not in status.read_text():
                assert running.process.poll() is None
            switches = [line for line in status.read_text().splitlines() if "ctxt_switches" in line]
            assert switches == [line for line in status.read_text().splitlines() if "ctxt_switches" in line]


def test_a_line_is_written_at_once() -> None:
    """Each line is one call, however it is put together: on a socket that keeps them apart, one message."""
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with theirs, ours:
        argv = [require_own_binary("cloche-rng"), "--fd", "99"]
        subprocess.run(argv, stdin=subprocess.DEVNULL, stderr=theirs.fileno(), check=False)
        assert ours.recv(4096) == b"cloche-rng: --fd: 99 is not open\n"
        # A word of the command line is written out, cut, and one line.
        subprocess.run([argv[0], "--\x1b[2J" + "x" * 100_000], stderr=theirs.fileno(), check=False)
        line = ours.recv(1 << 20)
        assert line.startswith(b'cloche-rng: unknown option "--\\\\u{1b}[2Jxxx')
        assert line.endswith(b"x...\n")
        assert len(line) <= 1024
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            ours.recv(1)


def test_one_request_is_bounded() -> None:
    """A request of megabytes gets 4096 bytes."""
    with machine() as (_, frontend):
        assert len(ask(frontend, 8 << 20)) == 4096


def test_a_stopped_queue_goes_on_where_it_was() -> None:
    """Stopped, started again and reset, the queue loses and repeats nothing; with the log on, its pages are marked."""
    with machine(protocol=1 << vhost.P_RESET | 1 << vhost.P_LOG_SHMFD) as (_, frontend):
        ask(frontend, 16)
        frontend.send(vhost.GET_VRING_BASE, struct.pack("<II", 0, 0))
        assert struct.unpack("<II", frontend.receive()) == (0, 1)
        log = os.memfd_create("log")
        os.ftruncate(log, 4096)
        frontend.send(vhost.SET_LOG_BASE, struct.pack("<QQ", 4096, 0), [log])
        frontend.receive()
        wanted = vhost.VERSION_1 | vhost.PROTOCOL_FEATURES | vhost.LOG_ALL
        frontend.send(vhost.SET_FEATURES, struct.pack("<Q", wanted))
        frontend.start(0)
        assert len(ask(frontend, 4096, 16)) == 4096
        bits = int.from_bytes(os.pread(log, 4096, 0), "little")
        os.close(log)
        # The page of the buffer, and that of the used ring.
        assert [page for page in range(4096 * 8) if bits >> page & 1] == [0x2, ROOM >> 12]
        frontend.send(vhost.RESET_DEVICE)
        # Not kicked before it has been reset: that would still be answered.
        frontend.query(vhost.GET_FEATURES)
        frontend.start(0)
        assert len(ask(frontend, 16)) == 16


def test_a_flood_costs_no_memory() -> None:
    """A guest that always has a full queue is answered, and the process does not grow."""
    with machine() as (running, frontend):
        for index in range(QUEUE_SIZE):
            frontend.put_descriptor(index, Descriptor(ROOM, 4096, WRITABLE, 0), 0)
        for head in range(QUEUE_SIZE):
            frontend.offer(head, 0)
        frontend.wait(0)
        before = running.memory_kib()
        for _ in range(40):
            for head in range(QUEUE_SIZE):
                frontend.offer(head, 0)
            frontend.wait(0)
        assert running.memory_kib() <= before + 128


def test_memory_in_slots() -> None:
    """Memory that is added in a second region is used, and not after it was taken away."""
    with machine(protocol=1 << vhost.P_SLOTS) as (_, frontend):
        assert frontend.query(vhost.GET_MAX_MEM_SLOTS) == 64
        slot = struct.pack("<QQQQQ", 0, vhost.MEMORY, 0x1000, vhost.USER_BASE + (1 << 32), 0)
        frontend.send(vhost.ADD_MEM_REG, slot, [frontend.memory_fd])
        frontend.put_descriptor(0, Descriptor(vhost.MEMORY, 16, WRITABLE, 0), 0)
        frontend.offer(0, 0)
        assert frontend.wait(0) == 16
        frontend.send(vhost.REM_MEM_REG, slot)
        frontend.query(vhost.GET_FEATURES)
        frontend.offer(0, 0)
        assert frontend.wait(0) == 0


@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("is_connected", [True, False])
def test_a_signal_ends_it_cleanly(tmp_path: Path, signo: int, is_connected: bool) -> None:
    """Asked to end, with or without a frontend, it ends with status 0."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as connection:
        listener.bind(str(tmp_path / "socket"))
        listener.listen(1)
        argv = [require_own_binary("cloche-rng"), "--fd", str(listener.fileno())]
        argv = [*vhost.traced("cloche-rng"), *argv, "--log-level", "debug"]
        with subprocess.Popen(argv, pass_fds=[listener.fileno()], stderr=subprocess.PIPE) as process:
            if is_connected:
                connection.connect(str(tmp_path / "socket"))
                frontend = Frontend(connection, 1)
                frontend.shake_hands()
            else:
                # Not before it listens to signals: what it logs then comes after that.
                assert process.stderr is not None
                assert b"waits" in process.stderr.readline()
            process.send_signal(signo)
            assert process.wait(vhost.PATIENCE_S) == 0


def test_only_what_was_named_is_inherited() -> None:
    """A descriptor that was left open by whoever started it is closed."""
    reader, writer = os.pipe()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        argv = [require_own_binary("cloche-rng"), "--fd", str(theirs.fileno())]
        with subprocess.Popen(argv, pass_fds=[theirs.fileno(), writer]) as process:
            theirs.close()
            os.close(writer)
            # The end of file comes although the process runs.
            assert os.read(reader, 1) == b""
            assert process.poll() is None
            ours.close()
            assert process.wait(vhost.PATIENCE_S) == 0
    os.close(reader)


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "--fd is required"),
        (["--fd"], "--fd needs a value"),
        (["--fd", "x"], '--fd does not take "x"'),
        (["--fd", "0", "--fd", "0"], "--fd is given twice"),
        (["--socket", "0"], 'unknown option "--socket"'),
        (["--fd", "0", "--log-level", "loud"], '--log-level does not take "loud"'),
    ],
)
def test_a_wrong_command_line_is_named(words: list[str], said: str) -> None:
    """A wrong command line ends it with status 2 and one sentence."""
    argv = [require_own_binary("cloche-rng"), *words]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, f"cloche-rng: {said}\n")


@pytest.mark.parametrize(
    "fd, said", [("0", "--fd names no Unix stream socket"), ("99", "--fd: 99 is not open")]
)
def test_a_wrong_descriptor_is_named(fd: str, said: str) -> None:
    """A descriptor that is none of a frontend's ends it with status 1 and one sentence."""
    argv = [require_own_binary("cloche-rng"), "--fd", fd]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"cloche-rng: {said}\n")
