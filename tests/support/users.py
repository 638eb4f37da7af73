"""An ordinary user for the tests, also where pytest runs as root (as it does in many containers)."""

from __future__ import annotations

import fcntl
import os
import pwd
import select
import shutil
import signal
import subprocess
import tempfile
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from support.leaks import SESSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parents[2]
#: The name of the user made where pytest runs as root: another for each checkout, so that none waits for another.
NAME = f"cloche-test-{zlib.crc32(os.fsencode(ROOT)):08x}"
#: A second one, for the tests that need two.
NEIGHBOUR = f"{NAME}-n"


class OrdinaryUser(NamedTuple):
    """Somebody without rights.

    ``entry`` is the line of passwd, ``home`` a writable directory (the user's own), ``project`` a checkout whose
    programs this user can run.
    """

    entry: pwd.struct_passwd
    home: Path
    project: Path

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return what a login gives this user, and ``more``."""
        return {
            "HOME": str(self.home),
            "USER": self.entry.pw_name,
            "LOGNAME": self.entry.pw_name,
            "SHELL": self.entry.pw_shell or "/bin/sh",
            "PATH": f"{self.project}/bin:/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            SESSION: os.environ.get(SESSION, ""),
            **(more or {}),
        }

    def popen(
        self,
        argv: Sequence[str | bytes],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
    ) -> subprocess.Popen[bytes]:
        """Start a program as this user, in the user's home unless told otherwise."""
        other = self.entry.pw_uid != os.geteuid()
        return subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=self.environment(env),
            cwd=cwd or self.home,
            user=self.entry.pw_uid if other else None,
            group=self.entry.pw_gid if other else None,
            extra_groups=[] if other else None,
        )

    def run(
        self,
        argv: Sequence[str | bytes],
        *,
        input: bytes | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        timeout: float = 120,
        check: bool = False,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program as this user to its end, as ``subprocess.run`` with captured output does."""
        stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
        with self.popen(argv, env=env, cwd=cwd, stdin=stdin) as process:
            try:
                output, errors = process.communicate(input, timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        done = subprocess.CompletedProcess(argv, process.returncode, output, errors)
        if check:
            done.check_returncode()
        return done


@contextmanager
def ordinary_user(kernels: Path, name: str = NAME) -> Iterator[OrdinaryUser]:
    """Provide an ordinary user: the present one, or one made for the purpose when that is root.

    Sessions that use a made user at the same time hold its lock; the last one removes the user.

    Args:
        name: What one that is made is called.
        kernels: The guest kernels of whoever runs the tests; a made user gets a copy, for building one takes minutes.
    """
    if os.geteuid() != 0:
        entry = pwd.getpwuid(os.getuid())
        yield OrdinaryUser(entry, Path(os.environ.get("HOME") or entry.pw_dir), ROOT)
        return
    with Path(f"/run/{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        entry = _make_user(kernels, name)
        project = _reachable_project(entry)
        fcntl.flock(lock, fcntl.LOCK_SH)
        try:
            yield OrdinaryUser(entry, Path(entry.pw_dir), project)
        finally:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass  # another session uses the user and will remove it
            else:
                _remove_user(entry)


def _make_user(kernels: Path, name: str) -> pwd.struct_passwd:
    """Return the user, made if need be, with a home and the kernels."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        # Not below pytest's own temporary directory: nobody but root may enter that one.
        home = tempfile.mkdtemp(prefix="cloche-test-", dir="/var/tmp")
        subprocess.run(
            ["/usr/sbin/useradd", "--system", "--user-group", "--no-create-home", "--home-dir", home, name],
            check=True,
            capture_output=True,
        )
        entry = pwd.getpwnam(name)
    home = entry.pw_dir
    os.makedirs(home, exist_ok=True)
    copies = Path(home, ".cache", "cloche", "kernels")
    for kernel in kernels.iterdir() if kernels.is_dir() else ():
        if kernel.is_dir() and not kernel.is_symlink() and not (copies / kernel.name).exists():
            shutil.copytree(kernel, copies / kernel.name, symlinks=True)
    subprocess.run(["chown", "-R", f"{entry.pw_uid}:{entry.pw_gid}", home], check=True)
    os.chmod(home, 0o700)
    return entry


def _reachable_project(entry: pwd.struct_passwd) -> Path:
    """Return the checkout, or a copy of what running needs when the user cannot get at the checkout."""
    probe = subprocess.run(
        ["test", "-r", str(ROOT / "src/cloche/errors.py"), "-a", "-x", str(ROOT / "bin/cloche")],
        user=entry.pw_uid,
        group=entry.pw_gid,
        extra_groups=[],
        check=False,
    )
    if probe.returncode == 0:
        return ROOT
    copy = Path(entry.pw_dir, "checkout")
    if not copy.exists():
        for name in ("bin", "src", "guest", "protocol", "build/bin"):
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


#: What the design allows a domain's processes after the end of their supervisor (a second), and more on a busy machine.
_END_TIMEOUT_S = 10.0


def _remove_user(entry: pwd.struct_passwd) -> None:
    """Remove the user and the home; what still runs in the user's name after a while is ended and is an error."""
    left = []
    for pid in _processes_of(entry.pw_uid):
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        with os.fdopen(pidfd):
            ended, _, _ = select.select([pidfd], [], [], _END_TIMEOUT_S)
            if not ended:
                left.append(f"{pid} {Path('/proc', str(pid), 'comm').read_text().strip()}")
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    shutil.rmtree(entry.pw_dir, ignore_errors=True)
    # --force: the killed ones may not have been reaped yet.
    subprocess.run(["/usr/sbin/userdel", "--force", entry.pw_name], check=False, capture_output=True)
    if left:
        raise AssertionError(f"still running as {entry.pw_name} when the tests had ended: {', '.join(left)}")


def _processes_of(uid: int) -> list[int]:
    found = []
    for directory in Path("/proc").iterdir():
        try:
            if directory.name.isdigit() and directory.stat().st_uid == uid:
                found.append(int(directory.name))
        except FileNotFoundError:
            continue
    return found
