"""The Python API: subprocess's names and behaviour, threads, asyncio, no fork of the host program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.runs import Runner

SCRIPT = Path(__file__).with_name("api_script.py")


@pytest.fixture(scope="module")
def said(cloche: Runner) -> dict[str, str]:
    """Run the script as the ordinary user, in one host program, and return what it found: name to value."""
    source = cloche.user.project / "src"
    program = (
        f"import sys; sys.path.insert(0, {str(source)!r}); exec(compile(sys.stdin.read(), 'api', 'exec'))"
    )
    done = cloche.user.run(["/usr/bin/python3", "-c", program], input=SCRIPT.read_bytes(), timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    return dict(line.split("=", 1) for line in done.stdout.decode().splitlines())


@pytest.mark.parametrize(
    "name, value",
    [
        ("run", "0 b'hello\\n' b'oops\\n'"),
        ("text", "'4\\n'"),
        ("input", "b'given'"),
        ("check", "CalledProcessError 3"),
        ("timeout", "TimeoutExpired"),
        ("signal", "-15"),
        ("unknown", "CommandNotFoundError"),
        ("string", "UsageError"),
        ("cwd_env", "/usr/share blue"),
        ("popen", "b'ping\\n' 0"),
        ("merged", "b'out\\nerr\\n'"),
        ("threads", "[1, 4, 9, 16]"),
        ("same_machine", "True"),
        ("closed", "DomainError"),
        ("aio", "['0', '1', '2', '3']"),
        ("aio_stream", "b'line\\n' 7"),
        ("aio_cancel", "CancelledError"),
        ("aio_waits", "0"),
        ("aio_ends", "{0}"),
        ("aio_cancel_exec", "0"),
        ("aio_cancel_start", "ChildProcessError"),
        ("forks", "0"),
    ],
)
def test_api(said: dict[str, str], name: str, value: str) -> None:
    """Each call behaves as subprocess's or asyncio's of the same name."""
    assert said[name] == value


_FORKS = """
import os, cloche
with cloche.Sandbox() as box:
    child = os.fork()
    if child == 0:
        try:
            box.run(["true"])
        except cloche.ClocheError as error:
            print(type(error).__name__, "fork" in error.message, flush=True)
        box.close()
        os._exit(0)
    os.waitpid(child, 0)
    print(box.check_output(["echo", "alive"], text=True), end="")
"""


def test_a_forked_child_does_not_wait_for_ever(cloche: Runner) -> None:
    """A sandbox is refused to a fork of its host program, which does not have its thread, and goes on in the latter."""
    program = f"import sys; sys.path.insert(0, {str(cloche.user.project / 'src')!r})\n{_FORKS}"
    done = cloche.user.run(["/usr/bin/python3", "-c", program], timeout=60)
    assert done.stdout == b"DomainError True\nalive\n", done.stderr


_DROPPED = """
import gc, os, sys, threading, warnings, cloche
warnings.simplefilter("always")
gc.disable()  # until it is asked for
warnings.showwarning = lambda message, kind, *_: "Sandbox" in str(message) and print(kind.__name__, flush=True)
def supervisors():
    found = []
    for tid in os.listdir("/proc/self/task"):
        found += open(f"/proc/self/task/{tid}/children").read().split()
    return found
def start(directory):
    box = cloche.Sandbox(share=[directory + ":rw"])
    box.start()
    box.run(["sh", "-c", f"echo written > {directory}/file"])
    # A program that runs, and the one that holds it in a circle, keep nothing.
    box.process = box.popen(["sleep", "1000"], stdin=cloche.DEVNULL)
    box.self = box
    return box.process
process = start(sys.argv[1])
threads = threading.enumerate()
fds = [os.pidfd_open(int(pid)) for pid in supervisors()]
print(len(fds), flush=True)
gc.collect()
for thread in threads:
    if thread is not threading.main_thread():
        thread.join(60)
print([thread.is_alive() for thread in threads], supervisors(), open(sys.argv[1] + "/file").read(), end="")
try:
    print(process.wait())
except cloche.ClocheError as error:
    print(type(error).__name__, "nothing in the program held it" in error.message)
with cloche.Sandbox() as box:
    box.run(["true"])
box = cloche.Sandbox()
del box
gc.collect()
print("closed ones warn of nothing")
left = cloche.Sandbox()
left.start()
"""


def test_a_dropped_sandbox_ends(cloche: Runner, folder: Path) -> None:
    """A sandbox that nothing holds ends in order, with a warning; one that was closed or never started says nothing."""
    program = f"import sys; sys.path.insert(0, {str(cloche.user.project / 'src')!r})\n{_DROPPED}"
    done = cloche.user.run(["/usr/bin/python3", "-c", program, str(folder)], timeout=120)
    assert done.stdout.decode().splitlines() == [
        "1",
        "ResourceWarning",
        "[True, False] [] written",
        "DomainError True",
        "closed ones warn of nothing",
    ], done.stderr


_WAITING = """
import asyncio
from cloche import aio

async def main():
    domain = await aio.Domain.start(["sh", "-c", "echo up; exec sleep 3600"], memory_mib=256)
    print(domain.ident)
    pieces = domain.logs(follow=True)
    print((await anext(pieces)).data)
    waiting = [asyncio.ensure_future(what) for what in (domain.wait(), anext(pieces))]
    await asyncio.wait(waiting, timeout=0.1)
    for one in waiting:
        one.cancel()
    print([type(error).__name__ for error in await asyncio.gather(*waiting, return_exceptions=True)])

asyncio.run(main())
print("over")
"""


def test_who_waits_for_a_domain_in_asyncio_may_stop_waiting(cloche: Runner) -> None:
    """The program that has waited, for its end or for what it says, ends while the domain runs."""
    program = f"import sys; sys.path.insert(0, {str(cloche.user.project / 'src')!r}); exec(sys.stdin.read())"
    done = cloche.user.run(["/usr/bin/python3", "-c", program], input=_WAITING.encode(), timeout=120)
    ident, *said = done.stdout.decode().splitlines()
    try:
        assert said == ["b'up\\n'", "['CancelledError', 'CancelledError']", "over"], done.stderr
        assert cloche("exec", ident, "true").returncode == 0
    finally:
        assert cloche("stop", "-t", "0", ident).returncode == 0
        assert cloche("rm", ident).returncode == 0


_PAUSED = """
import cloche
from threading import Thread

with cloche.Sandbox() as box:
    with box.popen(["sh", "-c", "while :; do echo tick; sleep 0.25; done"], stdout=cloche.PIPE) as ticking:
        ticking.stdout.readline()
        box.pause()
        (copy,) = box.fork()
        box.snapshot("paused-box")
        try:
            box.add_disk("more=size:1M")
        except cloche.ClocheError as error:
            print(error.message)
        saved = cloche.Snapshot("paused-box").restore()
        cloche.Snapshot("paused-box").delete()
        print(box.state, copy.state, saved.state)
        for one in (copy, saved):
            one.resume()
            one.run(["true"], check=True)
            one.stop(grace=0)
            one.remove()
        box.resume()
        print(ticking.stdout.readline())
        # A pause waits for the save that is under way, and a save for the pause.
        saving = [Thread(target=box.snapshot, args=(f"paused-box-{number}",)) for number in range(2)]
        for one in saving:
            one.start()
        box.pause()
        for number, one in enumerate(saving):
            one.join()
            cloche.Snapshot(f"paused-box-{number}").delete()
        print(box.state)
        box.resume()
        print(box.run(["echo", "on"], capture_output=True).stdout)
        ticking.kill()
"""


def test_a_paused_sandbox_is_saved_and_stays_paused(cloche: Runner) -> None:
    """So are its copies; it takes no disk meanwhile; and neither a pause nor a save comes into the other's way."""
    program = f"import sys; sys.path.insert(0, {str(cloche.user.project / 'src')!r}); exec(sys.stdin.read())"
    done = cloche.user.run(["/usr/bin/python3", "-c", program], input=_PAUSED.encode(), timeout=200)
    assert done.stdout.decode().splitlines() == [
        "the domain is paused",
        "paused paused paused",
        "b'tick\\n'",
        "paused",
        "b'on\\n'",
    ], done.stderr.decode()


@pytest.mark.parametrize("page, least", [("api.md", 4), ("snapshots.md", 2)])
def test_examples_of_the_documentation(cloche: Runner, project: Path, page: str, least: int) -> None:
    """Every Python example of these pages runs as it stands."""
    text = (project / "docs" / page).read_text()
    blocks = [part.partition("```")[0] for part in text.split("```python\n")[1:]]
    assert len(blocks) >= least
    source = cloche.user.project / "src"
    program = (
        f"import sys; sys.path.insert(0, {str(source)!r}); exec(compile(sys.stdin.read(), 'docs', 'exec'))"
    )
    for block in blocks:
        done = cloche.user.run(["/usr/bin/python3", "-c", program], input=block.encode(), timeout=120)
        assert done.returncode == 0, (block, done.stderr.decode())


def test_importing_the_package_is_cheap() -> None:
    """`import cloche` loads nothing of the machinery."""
    source = Path(__file__).resolve().parents[2] / "src"
    program = (
        f"import sys; sys.path.insert(0, {str(source)!r}); import cloche; print('subprocess' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, check=True)
    assert done.stdout == b"False\n"
