"""A guest that does not come up, or turns against the host: kernels, agents and what they say."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.errors import check_error
from support.hosts import bind

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.hosts import ChangedHost
    from support.runs import Runner

ROGUE_SOURCE = Path(__file__).parents[1] / "support" / "rogue.c"
#: Long enough for a guest to start, short enough to wait for.
DEADLINE = "5s"
#: An undisturbed run takes some 20 MiB; what a guest can make the supervisor hold is a few windows of 256 KiB.
MOST_MEMORY_KIB = 48 << 10

#: Runs cloche and says on stdout how much memory that took at most, in KiB.
_MEASURE = """
import sys
sys.path.insert(0, sys.argv[1])
from cloche.cli.main import main
status = main(sys.argv[2:])
with open("/proc/self/status") as file:
    print(next(line.split()[1] for line in file if line.startswith("VmHWM:")))
sys.exit(status)
"""


@pytest.fixture
def with_rogue(host: ChangedHost, folder: Path) -> Callable[[str], ChangedHost]:
    """Return a function that gives a host on which a program of ``rogue.c`` stands in the place of the agent."""

    def make(kind: str) -> ChangedHost:
        program = folder / f"rogue-{kind}"
        flags = ["-static", "-O2", "-Wall", "-Werror", f"-DROGUE={kind}"]
        subprocess.run(["gcc", *flags, "-o", str(program), str(ROGUE_SOURCE)], check=True)
        program.chmod(0o755)
        return host.on(bind(program, host.user.project / "build" / "bin" / "cloche-agent"))

    return make


@pytest.fixture
def built(host: ChangedHost) -> Path:
    """Return the directory of the user's built kernel."""
    kernels = host.user.home / ".cache" / "cloche" / "kernels"
    return next(path for path in sorted(kernels.iterdir()) if (path / "vmlinux").exists())


def with_image(built: Path, folder: Path, image: bytes, *, honest: bool = True) -> str:
    """Return the directory of a kernel with another image; if ``honest``, of the size that its description says."""
    copy = folder / "kernel"
    shutil.copytree(built, copy)
    (copy / "vmlinux").write_bytes(image)
    if honest:
        lines = (copy / "info").read_text().splitlines()
        lines = [f"size {len(image)}" if line.startswith("size ") else line for line in lines]
        (copy / "info").write_text("\n".join(lines) + "\n")
    return str(copy)


# Kernels


@pytest.mark.parametrize("kind", ["empty", "no kernel", "cut at once", "cut in the middle", "noise"])
def test_damaged_kernel(host: ChangedHost, folder: Path, built: Path, kind: str) -> None:
    """A kernel that is not what was stored is called damaged, also where its size and its beginning are right."""
    whole = (built / "vmlinux").read_bytes()
    noise = random.Random(1).randbytes(1 << 20)
    image = {
        "empty": b"",
        "no kernel": noise,
        "cut at once": whole[:4096],
        "cut in the middle": whole[: len(whole) // 2],
        "noise": whole[:65536] + noise,
    }[kind]
    done = host("--kernel", with_image(built, folder, image), "true")
    check_error(done, 125, "kernel kernel is damaged", "cloche kernel build")


def test_kernel_of_another_size(host: ChangedHost, folder: Path, built: Path) -> None:
    """A kernel that lost its end is found before anything starts, with both sizes."""
    whole = (built / "vmlinux").read_bytes()
    done = host("--kernel", with_image(built, folder, whole[:-1], honest=False), "true")
    check_error(done, 125, f"has {len(whole) - 1} bytes instead of {len(whole)}")


def test_kernel_without_a_description(host: ChangedHost, folder: Path, built: Path) -> None:
    """A kernel's directory without ``info``, with nonsense in it, and one that is not there are told apart."""
    copy = folder / "kernel"
    shutil.copytree(built, copy)
    (copy / "info").write_bytes(b"\xff\xfe\0nonsense")
    check_error(host("--kernel", str(copy), "true"), 125, "of an unknown form")
    (copy / "info").unlink()
    check_error(host("--kernel", str(copy), "true"), 125, "cannot be read (No such file or directory)")
    shutil.rmtree(copy)
    check_error(host("--kernel", str(copy), "true"), 125, "there is no kernel", str(copy))


def test_kernel_that_panics(host: ChangedHost, folder: Path) -> None:
    """A kernel that finds no agent in its initramfs ends the run at once, with its panic."""
    text = folder / "agent"
    text.write_text("no program\n")
    text.chmod(0o755)
    done = host.on(bind(text, host.user.project / "build" / "bin" / "cloche-agent"))("true")
    check_error(done, 125, "stopped the machine", "Kernel panic", "--boot-log")


def test_agent_that_dies(with_rogue: Callable[[str], ChangedHost]) -> None:
    """An agent that ends takes its kernel with it, and the panic is shown."""
    check_error(with_rogue("CRASH")("true"), 125, "stopped the machine", "Attempted to kill init")


def test_guest_that_hangs(with_rogue: Callable[[str], ChangedHost]) -> None:
    """A guest that stays silent ends at the deadline; its last words are shown, escaped, the unfinished line too."""
    done = with_rogue("HANG")("--boot-timeout", DEADLINE, "true")
    words = check_error(done, 125, "did not answer within 5 seconds", "--boot-timeout")
    assert "  first line\n  here the \\x1b[31mguest\\x1b[2J stops\nhint: " in words


def test_boot_log_is_escaped(with_rogue: Callable[[str], ChangedHost]) -> None:
    """--boot-log shows what a guest says on its console, and no escape sequence reaches the terminal."""
    done = with_rogue("HANG")("--boot-timeout", DEADLINE, "--boot-log", "true")
    assert b"cloche: boot: first line\n" in done.stderr
    assert b"here the \\x1b[31mguest\\x1b[2J stops" in done.stderr
    assert b"\x1b" not in done.stderr


# Agents


def test_agent_of_another_version(with_rogue: Callable[[str], ChangedHost]) -> None:
    """An agent of another protocol version is refused with both versions and the command that mends it."""
    done = with_rogue("OLD")("true")
    check_error(done, 125, "version 2 of the protocol and cloche version 1", "make setup")


@pytest.mark.parametrize(
    "kind, said",
    [
        ("GARBAGE", "MiB came before the answer"),
        ("JUNK", "a frame has the unknown type"),
        ("FLOOD", "passes its limit"),
        ("CHATTER", "did not answer within"),
    ],
)
def test_guest_that_floods(with_rogue: Callable[[str], ChangedHost], kind: str, said: str) -> None:
    """Bytes without meaning, frames past the credit and endless messages within it: the run ends, in little memory."""
    host = with_rogue(kind)
    done = host.run_on_host(
        *("/usr/bin/python3", "-I", "-S", "-c", _MEASURE, str(host.user.project / "src")),
        *("--boot-timeout", DEADLINE, "true"),
    )
    check_error(done, 125, said)
    assert int(done.stdout) < MOST_MEMORY_KIB


@pytest.mark.parametrize(
    "command, done", [(0x01234567, "restarted"), (0x4321FEDC, "switched off"), (0xCDEF0123, "halted")]
)
def test_a_program_that_ends_its_machine(cloche: Runner, command: int, done: str) -> None:
    """reboot(2) by root of the guest is told as what it is, whether the machine goes or only stands still."""
    script = f"import ctypes; ctypes.CDLL(None).reboot({command})"
    ended = cloche("--privileged", "python3", "-c", script)
    assert ended.returncode == 125
    lines = ended.stderr.decode().splitlines()
    assert lines == [
        f"cloche: a program in the guest has {done} its machine, and ended itself with it",
        "hint: A machine lives as long as the program it was started for: let that one end.",
    ]
