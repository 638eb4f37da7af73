"""What `tools/setup` does with its words."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from setuplib.ui import ROOT, SetupError, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

USAGE = """\
usage: tools/setup [--upgrade-qemu] WHAT

WHAT is what is to be made possible, with everything it needs:
  demo     run programs (a kernel that is there is used, else one is fetched)
  test     run the tests (with a kernel built for cloche)
  long     run the tests that take minutes, too
  check    run the linters
  bench    run the benchmarks
or one stage:
  system [GROUP...]   Debian packages (run rust python kernel test long check bench)
  python              .venv with the development tools
  rust                the Rust programs in build/bin
  kernel [build|any]  a guest kernel
  suites              pjdfstest in build/tools
or
  cargo WORD...       cargo as the set-up finds it

What is there already is not made again. --upgrade-qemu replaces an installed QEMU older than 10 where that is possible.
"""

#: What each word needs: groups of packages, then stages in the order in which they are done. Those joined by `&` are
#: done at the same time: one computes while the other downloads.
RECIPES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "demo": (("run", "rust", "python"), ("rust & python", "kernel any")),
    "test": (
        ("run", "rust", "python", "kernel", "test", "check"),
        ("python", "rust", "kernel build"),
    ),
    "long": (
        ("run", "rust", "python", "kernel", "test", "long", "check"),
        ("python", "rust", "suites", "kernel build"),
    ),
    "check": (("rust", "python", "check"), ("python",)),
    "bench": (("run", "rust", "python", "kernel", "bench"), ("python", "rust", "kernel build")),
}


def main(argv: list[str]) -> int:
    """Do what is asked for; return the exit status."""
    upgrade_qemu = "--upgrade-qemu" in argv
    words = [word for word in argv if word != "--upgrade-qemu"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if words else 2
    try:
        if words[0] == "cargo":
            _exec_cargo(words[1:])
        steps = list(_steps(words, upgrade_qemu=upgrade_qemu))
        if not steps:
            print(f"tools/setup: no such thing: {' '.join(words)}\n{USAGE}", end="", file=sys.stderr)
            return 2
        _wait_for_others()
        for step in steps:
            step()
    except SetupError as error:
        print(f"set-up stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up stopped; what is done stays, run it again to go on", file=sys.stderr)
        return 130
    return 0


def _steps(words: list[str], *, upgrade_qemu: bool) -> Iterator[Callable[[], None]]:
    """Yield what has to be done, in order; nothing when the words are not known."""
    from setuplib import packages

    if words[0] == "system":
        groups = tuple(words[1:]) or ("run", "rust", "python")
        if set(groups) <= packages.GROUPS.keys():
            yield lambda: _system(groups, upgrade_qemu=upgrade_qemu)
    elif words[0] in RECIPES and len(words) == 1:
        groups, stages = RECIPES[words[0]]
        yield lambda: _system(groups, upgrade_qemu=upgrade_qemu)
        for stage in stages:
            yield _together(stage.split(" & "))
    elif " ".join(words) in ("python", "rust", "suites", "kernel", "kernel any", "kernel build"):
        yield _stage(" ".join(words))


def _system(groups: tuple[str, ...], *, upgrade_qemu: bool) -> None:
    from setuplib import system

    system.ensure(groups, upgrade_qemu=upgrade_qemu)


def _stage(words: str) -> Callable[[], None]:
    """Return what does a stage."""
    name, _, how = words.partition(" ")
    if name == "python":
        from setuplib import python

        return python.ensure
    if name == "rust":
        from setuplib import rust

        return rust.ensure
    if name == "suites":
        from setuplib import suites

        return suites.ensure
    from setuplib import kernel

    return lambda: kernel.ensure(built=how == "build")


def _together(stages: list[str]) -> Callable[[], None]:
    """Return what does some stages at the same time, and fails with the first failure when all have ended."""
    if len(stages) == 1:
        return _stage(stages[0])

    def work() -> None:
        from threading import Thread

        from setuplib import ui

        failures: list[SetupError] = []

        def branch(step: Callable[[], None]) -> None:
            try:
                step()
            except SetupError as error:
                failures.append(error)

        ui.one_writer = False
        threads = [Thread(target=branch, args=(_stage(stage),), daemon=True) for stage in stages]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ui.one_writer = True
        if failures:
            raise failures[0]

    return work


def _wait_for_others() -> None:
    """Keep a second set-up of the same checkout waiting until the first has ended."""
    import fcntl

    # The directory itself is locked, until this process ends: nothing has to be made, and nothing stays.
    fd = os.open(ROOT, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("set-up", "waiting for another one to end")
        fcntl.flock(fd, fcntl.LOCK_EX)


def _exec_cargo(words: list[str]) -> None:
    """Become cargo."""
    from setuplib import cargo

    found = cargo.find()
    if found is None:
        raise SetupError("there is no new enough cargo; 'tools/setup system rust' installs one")
    os.environ.update(cargo.environment(found))
    os.execv(found.path, [found.path, *words])  # noqa: S606 - becoming it is the point
