"""Standard streams, status, signals and arguments of a program in a guest."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.runs import Runner


def test_stdout_and_stderr_stay_apart(cloche: Runner) -> None:
    """What a program writes to stdout and to stderr arrives there and nowhere else."""
    done = cloche.sh("echo out; echo err >&2")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"out\n", b"err\n")


@pytest.mark.parametrize("status", [0, 1, 7, 255])
def test_exit_status_is_the_programs(cloche: Runner, status: int) -> None:
    """Every exit status comes back as it is."""
    assert cloche.sh(f"exit {status}").returncode == status


def test_death_by_signal_is_128_plus_its_number(cloche: Runner) -> None:
    """A program ended by a signal gives 128+N."""
    assert cloche.sh("kill -TERM $$").returncode == 128 + signal.SIGTERM


def test_every_byte_passes_both_ways(cloche: Runner) -> None:
    """Binary input comes back unchanged, with its end of file."""
    data = os.urandom(3 << 20) + bytes(range(256))
    done = cloche("cat", input=data)
    assert done.returncode == 0
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


def test_empty_input_is_an_end_of_file(cloche: Runner) -> None:
    """A program that reads an empty input ends."""
    assert cloche("wc", "-c", input=b"").stdout.strip() == b"0"


def test_reader_that_leaves_ends_the_writer(cloche: Runner) -> None:
    """`cloche yes | head -1` ends at once, as without cloche."""
    with cloche.popen("yes") as process:
        assert process.stdout is not None
        assert process.stdout.read(4) == b"y\ny\n"
        process.stdout.close()
        assert process.wait(60) == 128 + signal.SIGPIPE


def test_writer_learns_that_the_program_closed_its_input(cloche: Runner) -> None:
    """A program that ends without reading breaks its writer's pipe instead of blocking it."""
    with cloche.popen("sh", "-c", "exec <&-; echo closed; sleep 1000", stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"closed\n"
        with pytest.raises(BrokenPipeError):
            while True:
                os.write(process.stdin.fileno(), bytes(65536))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM


def test_reader_learns_that_the_program_closed_its_output(cloche: Runner) -> None:
    """A program that closes its stdout and goes on gives its reader the end of file."""
    with cloche.popen("sh", "-c", "echo last; exec >&-; sleep 1000") as process:
        assert process.stdout is not None
        assert process.stdout.read() == b"last\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM


def test_pipeline_of_three_machines(cloche: Runner) -> None:
    """Several cloches in a pipeline behave like the programs themselves."""
    with (
        cloche.popen("seq", "1", "20000") as first,
        cloche.popen("grep", "7", stdin=first.stdout.fileno()) as second,  # type: ignore[union-attr]
        cloche.popen("wc", "-l", stdin=second.stdout.fileno()) as third,  # type: ignore[union-attr]
    ):
        for earlier in (first, second):
            assert earlier.stdout is not None
            earlier.stdout.close()
        out, _ = third.communicate(timeout=120)
    expected = sum("7" in str(number) for number in range(1, 20001))
    assert int(out) == expected
    assert (first.returncode, second.returncode, third.returncode) == (0, 0, 0)


@pytest.mark.parametrize(
    "signo", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]
)
def test_signals_are_passed_on(cloche: Runner, signo: signal.Signals) -> None:
    """A signal sent to cloche reaches the program, which may handle it."""
    name = signo.name.removeprefix("SIG")
    script = f"trap 'echo got {name}; exit 9' {name}; echo ready; while :; do sleep 0.1; done"
    with cloche.popen("sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signo)
        assert process.stdout.read() == f"got {name}\n".encode()
        assert process.wait(60) == 9


def test_words_with_every_kind_of_byte(cloche: Runner) -> None:
    """Arguments and variables with spaces, quotes, newlines and bytes that are not UTF-8 arrive unchanged."""
    words = [b"a b", b"it's", b'"', b"$HOME", b"new\nline", b"", b"\xff\xfe", "ä€".encode(), b"*", b"-x"]
    done = cloche(
        "-e", b"STRANGE=a 'b'\n\xff", "python3", "-c",
        "import os,sys; w=sys.stdout.buffer.write; [w(os.fsencode(a)+b'\\0') for a in sys.argv[1:]];"
        "w(os.environb[b'STRANGE'])",
        *words,
    )  # fmt: skip
    assert done.stderr == b""
    assert done.stdout == b"".join(word + b"\0" for word in words) + b"a 'b'\n\xff"


def test_a_hundred_thousand_arguments(cloche: Runner) -> None:
    """As many arguments as the kernel takes are taken."""
    words = [str(number) for number in range(100_000)]
    done = cloche("sh", "-c", "echo $# ${100000}", "sh", *words)
    assert (done.returncode, done.stdout) == (0, b"100000 99999\n")


def test_unread_output_does_not_fill_the_memory(cloche: Runner) -> None:
    """A program whose output nobody reads is held back; memory of the supervisor stays small."""
    with cloche.popen("sh", "-c", "echo ready >&2; head -c 200000000 /dev/zero") as process:
        assert process.stderr is not None
        assert process.stdout is not None
        assert process.stderr.readline() == b"ready\n"
        assert process.stdout.read(1 << 20) == bytes(1 << 20)
        with open(f"/proc/{process.pid}/status", encoding="ascii") as file:
            peak_kib = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
        assert peak_kib < 64 * 1024
        rest = 0
        while piece := process.stdout.read(1 << 20):
            rest += len(piece)
        assert rest == 200_000_000 - (1 << 20)
        assert process.wait(60) == 0


def test_background_processes_do_not_hold_the_run(cloche: Runner) -> None:
    """The domain ends with its command, whoever still holds the output open."""
    done = cloche.sh("sleep 1000 & echo started")
    assert (done.returncode, done.stdout) == (0, b"started\n")


def test_a_byte_back_and_forth_is_one_interrupt(cloche: Runner) -> None:
    """The guest is interrupted for what comes, not for what it has sent, and the agent wakes once for either."""
    count = "awk '/virtio/ {n += $2} END {print n}' /proc/interrupts; awk '/^voluntary/ {print $2}' /proc/1/status"
    rounds = 400
    with cloche.popen("sh", "-c", f"{count}; cat; {count}", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        before = [int(process.stdout.readline()) for _ in range(2)]
        for _ in range(rounds):
            os.write(process.stdin.fileno(), b"x")
            assert os.read(process.stdout.fileno(), 1) == b"x"
        process.stdin.close()
        interrupts, wakes = (int(line) - was for line, was in zip(process.stdout, before, strict=True))
        assert process.wait(60) == 0
    assert interrupts < 1.2 * rounds
    assert wakes < 2.2 * rounds


@pytest.mark.parametrize("driver", ["qemu", "bwrap"])
def test_a_program_is_scheduled_as_ever(cloche: Runner, driver: str) -> None:
    """That the agent waits for programs is not passed on to them."""
    done = cloche.sh("chrt -p $$", "--driver", driver)
    assert b"SCHED_OTHER" in done.stdout
