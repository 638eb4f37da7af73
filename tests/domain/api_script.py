"""What test_api runs in a host program of the ordinary user's; prints name=value lines."""

# ruff: noqa: T201

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING, Any

import cloche
from cloche import aio

if TYPE_CHECKING:
    from collections.abc import Callable

forks: list[int] = []
os.register_at_fork(before=lambda: forks.append(1))


def name_of(function: Callable[..., object], *args: object, **options: Any) -> str:
    """Return the name of what ``function`` raises."""
    try:
        function(*args, **options)
    except (cloche.ClocheError, cloche.CalledProcessError, cloche.TimeoutExpired) as error:
        return type(error).__name__ + (
            f" {error.returncode}" if isinstance(error, cloche.CalledProcessError) else ""
        )
    return "nothing"


with cloche.Sandbox() as box:
    done = box.run(["sh", "-c", "echo hello; echo oops >&2"], capture_output=True)
    print(f"run={done.returncode} {done.stdout!r} {done.stderr!r}")
    print(f"text={box.check_output(['expr', '2', '+', '2'], text=True)!r}")
    print(f"input={box.run(['cat'], input=b'given', stdout=cloche.PIPE).stdout!r}")
    print("check=" + name_of(box.run, ["sh", "-c", "exit 3"], check=True))
    print("timeout=" + name_of(box.run, ["sleep", "1000"], timeout=0.2))
    process = box.popen(["sleep", "1000"])
    process.terminate()
    print(f"signal={process.wait()}")
    print("unknown=" + name_of(box.run, ["no-such-program"]))
    print("string=" + name_of(box.run, "uname -a"))
    done = box.run(
        ["sh", "-c", "echo $PWD $COLOR"],
        cwd="/usr/share",
        env={"COLOR": "blue"},
        capture_output=True,
        text=True,
    )
    print(f"cwd_env={done.stdout.strip()}")
    with box.popen(["cat"], stdin=cloche.PIPE, stdout=cloche.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"ping\n")
        process.stdin.flush()
        line = process.stdout.readline()
        process.stdin.close()
        print(f"popen={line!r} {process.wait()}")
    done = box.run(["sh", "-c", "echo out; echo err >&2"], stdout=cloche.PIPE, stderr=cloche.STDOUT)
    print(f"merged={done.stdout!r}")
    results: dict[int, int] = {}

    def square(number: int) -> None:
        """Let the guest compute."""
        results[number] = int(box.check_output(["expr", str(number), "*", str(number)]).strip() or 0)

    threads = [threading.Thread(target=square, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"threads={[results.get(number, 0) for number in range(1, 5)]}")
    box.run(["touch", "/tmp/mark"])
    print(f"same_machine={box.call(['test', '-e', '/tmp/mark']) == 0}")
print("closed=" + name_of(box.run, ["true"]))


async def main() -> None:
    """Use the asyncio half."""
    async with aio.Sandbox() as box:
        done = await asyncio.gather(
            *(box.run(["echo", str(n)], capture_output=True, text=True) for n in range(4))
        )
        print(f"aio={[one.stdout.strip() for one in done]}")
        process = await box.create_subprocess_exec(
            "sh", "-c", "read x; echo $x; exit 7", stdin=aio.PIPE, stdout=aio.PIPE
        )
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"line\n")
        line = await process.stdout.readline()
        print(f"aio_stream={line!r} {await process.wait()}")
        task = asyncio.ensure_future(box.run(["sleep", "1000"]))
        await asyncio.wait([task], timeout=0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError as error:
            print(f"aio_cancel={type(error).__name__}")
        # More than the event loop has worker threads, each waited for: none is left for anybody else if each takes one.
        readers = [await box.create_subprocess_exec("cat", stdin=aio.PIPE) for _ in range(40)]
        waiting = [asyncio.ensure_future(reader.wait()) for reader in readers]
        await asyncio.wait(waiting, timeout=0)
        print(f"aio_waits={(await box.run(['true'])).returncode}")
        for reader in readers:
            assert reader.stdin
            reader.stdin.close()
        print(f"aio_ends={set(await asyncio.gather(*waiting))}")
        for turns in range(4):
            sleeper = asyncio.ensure_future(box.create_subprocess_exec("sleep", "4242", stdout=aio.PIPE))
            await cancelled(sleeper, turns)
        count = await box.run(["pgrep", "-xc", "sleep"], capture_output=True, text=True)
        print(f"aio_cancel_exec={count.stdout.strip()}")
    for turns in (1, 3):
        machine = aio.Sandbox()
        await cancelled(asyncio.ensure_future(machine.start()), turns)


async def cancelled(task: asyncio.Future[Any], turns: int) -> None:
    """Cancel a task after some turns of the loop, twice, and wait for its end."""
    for _ in range(turns):
        await asyncio.wait([task], timeout=0)
    task.cancel()
    await asyncio.wait([task], timeout=0)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return
    raise AssertionError("it was not cancelled")


asyncio.run(main())
try:
    print(f"aio_cancel_start={os.waitpid(-1, os.WNOHANG)}")
except ChildProcessError as error:
    print(f"aio_cancel_start={type(error).__name__}")
print(f"forks={len(forks)}")
