"""Hosts that differ from this one: mounts and limits that only the program run there sees.

A user and a mount namespace of their own make the difference, so it needs no rights, reaches nobody else and is gone
with the program. Inside, the program is the same user without any capability.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from support import leaks
from support.runs import Runner

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping

    from support.users import OrdinaryUser

#: Each change is a word and its arguments; the program follows after `--`.
_SCRIPT = """
set -e
while [ "$1" != -- ]; do
    case "$1" in
        bind) mount --bind "$2" "$3" ;;
        tmpfs) mount -t tmpfs -o "size=$2,mode=700" tmpfs "$3" ;;
        fill) head -c "$2" /dev/zero > "$3/filler" 2> /dev/null || : ;;
        sysctl) echo "$2" > "/proc/sys/$3" ;;
    esac
    shift 3
done
shift
exec setpriv --inh-caps=-all --ambient-caps=-all -- "$@"
"""

#: What the design allows a domain's processes after their end (a second), and what a busy machine adds.
_END_TIMEOUT_S = 10.0

Change = tuple[str, str, str]


def bind(source: Path, target: Path | str) -> Change:
    """``source`` stands at the existing ``target``."""
    return "bind", str(source), str(target)


def small_disk(directory: Path, size_bytes: int, *, filled: bool) -> tuple[Change, ...]:
    """``directory`` is an empty file system of this size, with no byte left when ``filled``."""
    made: tuple[Change, ...] = (("tmpfs", str(size_bytes), str(directory)),)
    return (*made, ("fill", str(size_bytes), str(directory))) if filled else made


def limited_inodes(directory: Path, inodes: int) -> Change:
    """``directory`` is an empty file system in which so many files can be, itself included."""
    return "tmpfs", f"1M,nr_inodes={inodes}", str(directory)


def sysctl(name: str, value: str) -> Change:
    """The kernel setting ``name`` (slashes between its parts) has this value."""
    return "sysctl", value, name


class ChangedHost(Runner):
    """``cloche`` for one user on a host with ``changes``; holds after every run that nothing of it is left.

    The runs have a runtime directory of their own, ``runtime``.
    """

    def __init__(self, user: OrdinaryUser, runtime: Path, *changes: Change) -> None:
        super().__init__(user)
        self.runtime = runtime
        self.changes = changes

    def on(self, *changes: Change) -> ChangedHost:
        """Return the same on a host with ``changes`` (and the ones there are) made."""
        return ChangedHost(self.user, self.runtime, *self.changes, *changes)

    def wrap(self, *words: str | bytes) -> list[str | bytes]:
        """Return the words that run ``words`` on this host."""
        own = ["unshare", "--user", "--map-current-user", "--keep-caps", "--mount"]
        changes = [word for change in self.changes for word in change]
        return [*own, "/bin/sh", "-c", _SCRIPT, "sh", *changes, "--", *words]

    def __call__(
        self,
        *words: str | bytes,
        input: bytes | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run cloche with these words to its end."""
        return self.run_on_host(self.program, *words, input=input, env=env, cwd=cwd, timeout=timeout)

    def sh_on_host(
        self, script: str, *words: str, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a script of ``sh`` on this host, for several runs one after the other."""
        return self.run_on_host("/bin/sh", "-c", script, *words, env=env)

    def run_on_host(
        self,
        *words: str | bytes,
        input: bytes | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program on this host to its end."""
        processes = leaks.processes()
        mounts = Path("/proc/self/mountinfo").read_bytes()
        done = self.user.run(
            self.wrap(*words),
            input=input,
            env={"XDG_RUNTIME_DIR": str(self.runtime), **(env or {})},
            cwd=cwd,
            timeout=timeout,
        )
        left = leaks.leaked(processes, leaks.processes(), os.getpid())
        assert not leaks.wait_for_end(left, _END_TIMEOUT_S)
        assert Path("/proc/self/mountinfo").read_bytes() == mounts
        assert not list(self.runtime.glob("cloche/*"))
        return done
