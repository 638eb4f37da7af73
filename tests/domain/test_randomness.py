"""A machine's random numbers: there at once, and no other machine's."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from support.runs import Runner

#: What the kernel says: when its numbers are ready, and when it starts the first process.
_READY, _FIRST = b"random: crng init done", b"Run /init as init process"


def test_two_machines_have_their_own_numbers(cloche: Runner) -> None:
    """The first program of a machine gets numbers without waiting, and two machines get different ones."""
    ask = "import os; print(os.getrandom(16, os.GRND_NONBLOCK).hex())"
    answers = [cloche("python3", "-c", ask).stdout for _ in range(2)]
    assert all(len(answer) == 33 for answer in answers)
    assert answers[0] != answers[1]


def test_the_kernel_has_numbers_before_it_starts_anything(cloche: Runner) -> None:
    """An emulated machine's CPU gives the kernel the host's numbers, so nobody has to."""
    said = cloche("--privileged", "--accel", "tcg", "dmesg").stdout
    assert 0 < said.index(_READY) < said.index(_FIRST)


def test_without_the_cpus_numbers_there_are_none(cloche: Runner) -> None:
    """The twin: on a CPU without RDRAND and RDSEED the kernel has none when it starts the first process."""
    source = cloche.user.project / "src"
    program = (
        f"import sys; sys.path.insert(0, {str(source)!r})\n"
        "from cloche.drivers.qemu import machine\n"
        "choose = machine.choose_cpu\n"
        "machine.choose_cpu = lambda *a: choose(*a) + ',-rdrand,-rdseed'\n"
        "from cloche.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["--privileged", "--accel", "tcg", "dmesg"]
    done = cloche.user.run(["/usr/bin/python3", "-IS", "-c", program, *words])
    assert done.returncode == 0, done.stderr
    assert _READY not in done.stdout.partition(_FIRST)[0]
