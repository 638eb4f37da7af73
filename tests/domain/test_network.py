"""The network card of real machines: frames go both ways, whatever dies on the way, and nothing else comes in."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.domains import domain_processes
from support.errors import check_error
from support.frames import BRING_UP, ECHO_PORT, STACK, listener, receive_frame, spoken, stack
from support.netload import GUEST, SMALL, count_sent, flood
from support.vhost import PATIENCE_S

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from support.runs import Runner

MAC = "02:00:00:00:00:01"
ETHERTYPE = 0x88B5  # for experiments (IEEE 802)

#: Sends so many pieces to the service that sends everything back, compares each, and says so.
TRANSFER = f"""
import hashlib, os, socket
connection = socket.create_connection(("{STACK}", {ECHO_PORT}), 120)
total = hashlib.sha256()
for number in range(int(os.environ["PIECES"])):
    piece = hashlib.sha256(b"%d" % number).digest() * 2048
    connection.sendall(piece)
    got = b""
    while len(got) < len(piece):
        data = connection.recv(len(piece) - len(got))
        assert data, "the connection has ended"
        got += data
    assert got == piece, number
    total.update(got)
    print(number, flush=True)
print(total.hexdigest(), flush=True)
"""

#: Receives a frame, sends it back to whoever it came from, and again, as often as it is told to.
MIRROR = f"""
import os, socket
card = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, {ETHERTYPE})
card.bind(("eth0", {ETHERTYPE}))
print("up", flush=True)
while True:
    frame = card.recv(2000)
    card.send(frame[6:12] + frame[:6] + frame[12:])
"""


def expected_total(pieces: int) -> bytes:
    """Return what a transfer ends with."""
    total = hashlib.sha256()
    for number in range(pieces):
        total.update(hashlib.sha256(b"%d" % number).digest() * 2048)
    return total.hexdigest().encode() + b"\n"


@pytest.fixture
def peer(folder: Path, cloche: Runner) -> Iterator[tuple[Path, socket.socket]]:
    """Provide a socket where this test listens for a guest's network card."""
    path = folder / "net.sock"
    with listener(path, cloche.user) as listening:
        yield path, listening


def front_process(supervisor: int) -> int | None:
    """Return the process of the network front, if there is one now."""
    for pid in domain_processes(supervisor):
        try:
            if Path(f"/proc/{pid}/comm").read_text() == "cloche-net\n":
                return pid
        except OSError:
            continue
    return None


def kill_front(supervisor: int) -> None:
    """Kill the network front."""
    victim = front_process(supervisor)
    assert victim is not None
    os.kill(victim, signal.SIGKILL)


def frame_to(mac: str, text: bytes, length: int = 60) -> bytes:
    """Return a frame of the experiments' kind from 02:00:00:00:00:02."""
    head = bytes.fromhex(mac.replace(":", "") + "020000000002") + struct.pack(">H", ETHERTYPE)
    return (head + text).ljust(length, b"\0")


def answers(connection: socket.socket) -> Iterator[bytes]:
    """Yield the frames of the experiments' kind that come, until the stream ends."""
    while frame := receive_frame(connection):
        if frame[12:14] == struct.pack(">H", ETHERTYPE):
            yield frame


def test_without_a_network_there_is_no_card(cloche: Runner) -> None:
    """A machine has no network card unless it is given one, and no process for it."""
    for words in ((), ("--net", "none")):
        ended = cloche.sh("ls /sys/bus/virtio/drivers/virtio_net; cat /proc/net/dev", *words)
        assert b"virtio" not in ended.stdout.replace(b"virtio_net", b"")
        assert b"eth0" not in ended.stdout
        assert b"cloche-net" not in cloche(*words, "--dry-run", "true").stdout


def test_the_card_has_its_name_its_address_and_is_down(
    cloche: Runner, peer: tuple[Path, socket.socket]
) -> None:
    """The guest finds eth0 with the address it was given, carrying 1500 bytes, and nothing of it is set up."""
    show = "cd /sys/class/net/eth0; cat address mtu; cat carrier 2>/dev/null || echo down"
    ended = cloche.sh(show, f"--net=socket:{peer[0]},mac={MAC}")
    assert ended.stdout == f"{MAC}\n1500\ndown\n".encode(), ended.stderr


def test_a_card_comes_with_the_restore_and_is_each_machines_own(
    cloche: Runner, peer: tuple[Path, socket.socket]
) -> None:
    """A machine with a card goes on from a template and can be saved; two have two addresses."""
    words = (f"--net=socket:{peer[0]}", "--timings")
    plan = cloche("run", "--dry-run", words[0], "true").stdout.decode()
    assert "start       from the template " in plan
    assert "\nsaveable    yes\n" in plan
    seen = set()
    for _ in range(2):
        ended = cloche("run", *words, "cat", "/sys/class/net/eth0/address")
        assert b"memory filled" in ended.stderr
        (address,) = ended.stdout.decode().split()
        # Of those that no maker gives out, and of one machine.
        assert int(address[:2], 16) & 3 == 2
        seen.add(address)
    assert len(seen) == 2


_API = """
import asyncio, sys
import cloche
from cloche import aio

card, show = f"socket:{sys.argv[1]},mac={sys.argv[2]}", ["cat", "/sys/class/net/eth0/address"]
print(cloche.run(show, net=card, capture_output=True, text=True).stdout, end="")
with cloche.Sandbox(hwrng=True, devices="bundled", privileged=True) as box:
    print(len(box.check_output(["head", "-c", "16", "/dev/hwrng"])), box.call(["test", "-e", "/sys/class/net/eth0"]))
print(asyncio.run(aio.run(show, net=card, capture_output=True, text=True)).stdout, end="")
wrongs = ({"net": "carrier-pigeon"}, {"net": "socket:/nowhere"}, {"net": card, "devices": "vmm"}, {"devices": "none"})
for wrong in wrongs:
    try:
        cloche.run(show, **wrong)
    except cloche.ClocheError as error:
        print(type(error).__name__)
"""


def test_the_api_gives_machines_their_devices(cloche: Runner, peer: tuple[Path, socket.socket]) -> None:
    """Card, random numbers and the place of devices are options of run and Sandbox; what is wrong is said."""
    program = f"import sys; sys.path.insert(0, {str(cloche.user.project / 'src')!r})\n{_API}"
    done = cloche.user.run(["/usr/bin/python3", "-c", program, str(peer[0]), MAC], timeout=300)
    said = done.stdout.decode().split("\n")
    assert said[:3] == [MAC, "16 1", MAC], done.stderr
    assert said[3:] == ["UsageError", "NetworkError", "UsageError", "UsageError", ""]


def test_frames_go_both_ways_and_only_the_guests_own(
    cloche: Runner, peer: tuple[Path, socket.socket]
) -> None:
    """A guest gets the frames for it and for all, no others, and what it sends under another address stays inside."""
    path, listening = peer
    script = f"ip link set eth0 up; exec python3 -c '{MIRROR}'"
    with cloche.popen("--privileged", f"--net=socket:{path},mac={MAC}", "sh", "-c", script) as process:
        connection = listening.accept()[0]
        connection.settimeout(PATIENCE_S)
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        with connection:
            heard = answers(connection)
            connection.sendall(spoken(frame_to("02:00:00:00:00:03", b"for another")))
            # To all: what the guest sends back has all as its sender, and is not let out.
            connection.sendall(spoken(frame_to("ff:ff:ff:ff:ff:ff", b"for all")))
            connection.sendall(spoken(frame_to(MAC, b"longer than the link carries", 1519)))
            for length in (60, 1514):
                connection.sendall(spoken(frame_to(MAC, b"for the guest", length)))
                back = next(heard)
                assert back[6:12] == bytes.fromhex(MAC.replace(":", ""))
                assert back[14:].startswith(b"for the guest")
                assert len(back) == length
        process.kill()


def test_a_card_is_added_while_a_program_runs(cloche: Runner, peer: tuple[Path, socket.socket]) -> None:
    """The program finds it with the address it was given; one at whose socket nobody listens changes nothing."""
    path, listening = peer
    find = "while [ ! -e /sys/class/net/eth0 ]; do sleep 0.1; done; ip link set eth0 up"
    name = f"card-{os.getpid()}"
    with (
        cloche.popen(
            "--privileged", "--name", name, "sh", "-c", f"echo begun; {find}; exec python3 -c '{MIRROR}'"
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        check_error(
            cloche("net", "add", name, f"socket:{path}-missing"),
            125,
            f"cannot connect the guest to {path}-missing: No such file or directory",
        )
        done = cloche("net", "add", name, f"socket:{path},mac={MAC}")
        assert (done.returncode, done.stdout) == (0, b"eth0\n"), done.stderr
        assert process.stdout.readline() == b"up\n"
        with listening.accept()[0] as connection:
            connection.settimeout(PATIENCE_S)
            connection.sendall(spoken(frame_to(MAC, b"for the guest")))
            assert next(answers(connection))[14:].startswith(b"for the guest")
        process.kill()


@pytest.fixture(params=["user", "caller"])
def runner(request: pytest.FixtureRequest, cloche: Runner, cloche_as_caller: Runner) -> Runner:
    """Return cloche as an ordinary user and as whoever runs the tests, one after the other."""
    return cloche if request.param == "user" else cloche_as_caller


def test_a_transfer_is_whole(runner: Runner, cloche: Runner, folder: Path) -> None:
    """A TCP connection to a network stack of the kernel's carries every byte, there and back."""
    path = folder / "net.sock"
    with stack(path, cloche.user):
        script = f"{BRING_UP}; exec python3 -c '{TRANSFER}'"
        words = ("--privileged", f"--net=socket:{path}", "-e", "PIECES=40")
        ended = runner.sh(script, *words)
    assert ended.stdout.splitlines(keepends=True)[-1:] == [expected_total(40)], ended.stderr


def transfer_with_kills(
    cloche: Runner, path: Path, pieces: int, kills: int, chance: float
) -> tuple[list[bytes], bytes]:
    """Kill the front now and then while a transfer goes on; return what the guest and cloche said."""
    script = f"{BRING_UP}; exec python3 -c '{TRANSFER}'"
    words = ("--privileged", f"--net=socket:{path}", "-e", f"PIECES={pieces}", "sh", "-c", script)
    pick = random.Random()
    said = []
    with cloche.popen(*words) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            said.append(line)
            # Once in any case.
            now = kills and (len(said) == 1 or pick.random() < chance)
            victim = front_process(process.pid) if now else None
            if victim is not None:
                kills -= 1
                os.kill(victim, signal.SIGKILL)
        return said, process.stderr.read()


@pytest.mark.parametrize("kills", [1, 4])
def test_a_transfer_survives_the_death_of_the_front(cloche: Runner, folder: Path, kills: int) -> None:
    """The front is killed in the middle of a transfer, and every byte arrives all the same."""
    path = folder / "net.sock"
    with stack(path, cloche.user):
        said, errors = transfer_with_kills(cloche, path, 40, kills, 0.3)
    assert said[-1:] == [expected_total(40)], errors
    assert errors.count(b"net was killed by signal 9 and is started again") >= 1


def test_a_front_that_dies_again_and_again_ends_the_domain(
    cloche: Runner, peer: tuple[Path, socket.socket]
) -> None:
    """After some deaths within a minute the run ends with 125 and says why."""
    with cloche.popen(f"--net=socket:{peer[0]}", "sh", "-c", "echo up; sleep 1000") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        killed = set()
        while process.poll() is None:
            victim = front_process(process.pid)
            if victim is not None and victim not in killed:
                killed.add(victim)
                os.kill(victim, signal.SIGKILL)
        assert process.stderr is not None
        errors = process.stderr.read()
    assert process.returncode == 125
    assert b"cloche: the domain ended: its process net was killed by signal 9, the last of 6 times" in errors


def test_a_peer_that_sends_garbage_ends_the_domain(cloche: Runner, peer: tuple[Path, socket.socket]) -> None:
    """A stream that is none of frames is left at once; when it never is one, the domain ends and says so."""
    path, listening = peer
    script = "ip link set eth0 up; echo up; sleep 1000"
    with cloche.popen("--privileged", f"--net=socket:{path}", "sh", "-c", script) as process:
        for _ in range(6):
            with listening.accept()[0] as connection:
                connection.settimeout(PATIENCE_S)
                connection.sendall(b"\xff" * 64)
                # Until the front has hung up.
                while receive_frame(connection):
                    pass
        assert process.stderr is not None
        errors = process.stderr.read()
        assert process.wait(PATIENCE_S) == 125
    assert b"its process net exited with status 1, the last of 6 times" in errors
    assert b"the peer announced a frame of 4294967295 bytes" in errors


def test_a_peer_that_goes_and_comes_again(cloche: Runner, peer: tuple[Path, socket.socket]) -> None:
    """While nobody listens the guest goes on; when somebody does again, the machine has its network again."""
    path, listening = peer
    script = f"ip link set eth0 up; exec python3 -c '{MIRROR}'"
    with cloche.popen("--privileged", f"--net=socket:{path},mac={MAC}", "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = listening.accept()[0]
        assert process.stdout.readline() == b"up\n"
        first.close()
        assert b"has hung up" in process.stderr.readline()
        with listening.accept()[0] as second:
            second.settimeout(PATIENCE_S)
            # The guest's driver sees its card come and go: what it is sent before that is lost, as on any link.
            second.sendall(spoken(frame_to(MAC, b"again")))
            assert next(answers(second))[14:].startswith(b"again")
        process.kill()


def test_nobody_listens(cloche: Runner, folder: Path) -> None:
    """A socket that is not there, that is none, or that nobody listens at, is refused before anything starts."""
    missing, dead, wrong = folder / "missing", folder / "dead", folder / "wrong"
    with listener(dead, cloche.user):
        os.link(dead, folder / "kept")
    wrong.write_bytes(b"")
    check_error(
        cloche(f"--net=socket:{missing}", "true"),
        125,
        f"cannot connect the guest to {missing}: No such file or directory",
        "passt",
    )
    check_error(
        cloche(f"--net=socket:{folder / 'kept'}", "true"),
        125,
        f"cannot connect the guest to {folder / 'kept'}: Connection refused",
    )
    check_error(
        cloche(f"--net=socket:{wrong}", "true"), 125, f"cannot connect the guest to {wrong}: it is no socket"
    )


def test_two_guests_hear_each_other(cloche: Runner, folder: Path) -> None:
    """Two machines whose sockets somebody joins exchange frames under addresses of their own."""
    import selectors

    other = "02:00:00:00:00:02"
    paths = [folder / "one.sock", folder / "two.sock"]
    caller = f"""
import socket
card = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, {ETHERTYPE})
card.bind(("eth0", {ETHERTYPE}))
card.settimeout(1)
while True:
    card.send(bytes.fromhex("020000000001020000000002") + ({ETHERTYPE}).to_bytes(2, "big") + b"hello" + bytes(60))
    try:
        print(card.recv(2000)[14:19].decode(), flush=True)
        break
    except TimeoutError:
        pass  # the other one is not up yet
"""
    with listener(paths[0], cloche.user) as one, listener(paths[1], cloche.user) as two:
        up = "ip link set eth0 up; exec python3 -c '{}'"
        words = [
            ("--privileged", f"--net=socket:{path},mac={mac}", "sh", "-c", up.format(script))
            for path, mac, script in zip(paths, (MAC, other), (MIRROR, caller.replace("'", '"')), strict=True)
        ]
        with cloche.popen(*words[0]) as mirror, cloche.popen(*words[1]) as calling:
            ends = [one.accept()[0], two.accept()[0]]
            with ends[0], ends[1], selectors.DefaultSelector() as selector:
                for here, there in (ends, ends[::-1]):
                    selector.register(here, selectors.EVENT_READ, there)
                assert calling.stdout is not None
                selector.register(calling.stdout, selectors.EVENT_READ)
                heard = b""
                while not heard:
                    for key, _ in selector.select(PATIENCE_S):
                        if key.fileobj is calling.stdout:
                            heard = calling.stdout.readline()
                        else:
                            key.data.sendall(key.fileobj.recv(1 << 16))  # type: ignore[union-attr]
            assert heard == b"hello\n"
            assert calling.wait(PATIENCE_S) == 0
            mirror.kill()


def test_the_load_of_the_benchmarks(cloche: Runner, peer: tuple[Path, socket.socket]) -> None:
    """What the benchmarks measure with arrives whole: every packet a guest sends, and every one that it is sent."""
    path, listening = peer
    for mode in ("send", "receive"):
        words = ("--privileged", f"--net=socket:{path}", "python3", "-c", GUEST, mode, str(SMALL), "2000")
        with cloche.popen(*words, stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            with listening.accept()[0] as connection:
                own = bytes.fromhex(process.stdout.readline().split()[1].decode())
                process.stdin.write(b"go\n")
                process.stdin.flush()
                if mode == "send":
                    rate = count_sent(connection, SMALL, 2000)
                else:
                    rate = flood(connection, own, SMALL, 2000)
                assert rate.packets >= 2000
                # A card whose socket has no room drops what comes for it: the guest counts what it got.
                assert 0 < int(process.stdout.readline()) <= 2000
                # It has ended before its peer has: else it would look for another.
                assert process.wait(PATIENCE_S) == 0
