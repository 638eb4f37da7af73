"""A host's network that a test has made, and cloche in it: what is there stands in ``outside_host``."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.runs import Runner

#: See ``outside_host``, which cannot be imported: it is a program.
ADDRESS, ECHO_PORT, SECRET_PORT = "10.77.0.1", 7, 8081
ADDRESS6, LINK6 = "fd77::1", "fe80::ff:fe00:77"
SECRET = b"a secret of the host"


class Outside:
    """Such a network, with cloche of one user in it. ``directory`` is what its web server shows."""

    def __init__(self, pid: int, cloche: Runner, directory: Path, runtime: str) -> None:
        self.directory = directory
        self._pid = pid
        self._runtime = runtime
        self._cloche = cloche

    @contextmanager
    def running(self, *words: str, program: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[bytes]]:
        """Start cloche, or what stands in for it, there; it is killed at the end of the block."""
        with self._popen(words, program) as process:
            try:
                yield process
            finally:
                process.kill()

    def _popen(self, words: tuple[str, ...], program: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        user = self._cloche.user
        entry = user.entry
        enter = ["nsenter", "--target", str(self._pid), "--net", "--mount"]
        if os.geteuid() == 0:
            ids = ["--reuid", str(entry.pw_uid), "--regid", str(entry.pw_gid), "--clear-groups"]
            become = ["setpriv", *ids] if entry.pw_uid else []
        else:
            enter += ["--user", "--preserve-credentials"]
            become = ["unshare", "--user", f"--map-user={entry.pw_uid}", f"--map-group={entry.pw_gid}"]
        return subprocess.Popen(
            [*enter, *become, "env", f"--chdir={user.home}", *(program or (self._cloche.program,)), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=user.environment({"XDG_RUNTIME_DIR": self._runtime}),
        )

    def __call__(self, *words: str, timeout: float = 120) -> subprocess.CompletedProcess[bytes]:
        """Run cloche there to its end."""
        with self.running(*words) as process:
            output, errors = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(words, process.returncode, output, errors)


@contextmanager
def outside(cloche: Runner, directory: Path) -> Iterator[Outside]:
    """Provide a network whose web server shows ``directory``."""
    (directory / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    program = Path(__file__).with_name("outside_host.py")
    root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    process = subprocess.Popen(
        ["unshare", *root, "--net", "--mount", sys.executable, "-I", "-S", str(program), str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with tempfile.TemporaryDirectory(dir=cloche.user.home, prefix="runtime-") as runtime, process:
        # Its domains are the only ones there.
        os.chown(runtime, cloche.user.entry.pw_uid, cloche.user.entry.pw_gid)
        try:
            assert process.stdout.readline() == b"ready\n"
            yield Outside(process.pid, cloche, directory, runtime)
        finally:
            process.kill()
