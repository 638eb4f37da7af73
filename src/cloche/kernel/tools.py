"""How building and fetching a kernel start other programs (layer 3, off the way to a run).

Both are long jobs that a user asked for, on the host and outside any domain: no jail, no supervisor, and ``subprocess``
may be imported. Nothing on the way to a start imports this module.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
from contextlib import contextmanager

from cloche.errors import KernelError, MissingToolError
from cloche.host.text import escape_untrusted
from cloche.kernel.store import remove_tree
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    #: Called with the name of a stage and how much of the whole is done, 0.0 to 1.0; never goes back.
    Progress = Callable[[str, float], None]

_TAIL_LINES = 15
#: What a build may depend on. All else of the user's environment (CFLAGS, KCONFIG_*, ...) could change its bytes.
_PASSED = frozenset(
    {
        "PATH",
        "HOME",
        "TMPDIR",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
    }
)


def no_progress(stage: str, fraction: float) -> None:
    """Take a report of progress and do nothing with it."""


def require_tools(packages: Mapping[str, str], files: Mapping[str, str] | None = None) -> None:
    """Check that programs, given as ``{program: Debian package}``, and files, ``{path: package}``, are installed.

    Raises:
        MissingToolError: One or more are not; the hint names every package at once.
    """
    missing = {tool: package for tool, package in packages.items() if shutil.which(tool) is None}
    missing.update({path: package for path, package in (files or {}).items() if not os.path.exists(path)})
    if missing:
        names = " ".join(sorted(set(missing.values())))
        raise MissingToolError(", ".join(sorted(missing)), hint=f"sudo apt-get install {names}")


def run_tool(
    argv: Sequence[str],
    *,
    cwd: str | None = None,
    extra_env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
) -> str:
    """Run a program to its end and return what it said on its standard output.

    ``on_line`` is given each line as it comes, without its end. Messages are in English, whatever the user's
    language, and standard input is empty. If this is interrupted (Ctrl-C) the program and all it started are
    ended first.

    Raises:
        KernelError: It could not be started or failed; the last lines it wrote are in ``detail``.
    """
    env = {key: value for key, value in os.environ.items() if key in _PASSED}
    env.update({"LC_ALL": "C.UTF-8", **(extra_env or {})})
    lines: list[str] = []
    try:
        process = subprocess.Popen(
            argv,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=0,
        )
    except OSError as error:
        raise KernelError(
            f"cannot start {argv[0]}: {error.strerror}", hint="See that it is installed and can be executed."
        ) from error
    with process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line)
                if on_line is not None:
                    on_line(line.rstrip("\n"))
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    status = process.returncode
    if status != 0:
        tail = "".join(lines[-_TAIL_LINES:]).strip()
        raise KernelError(
            f"{os.path.basename(argv[0])} failed with status {status}",
            detail=tuple(escape_untrusted(line, 300) for line in tail.encode().splitlines()),
            hint="Mend what it complains about and type the same command again.",
        )
    return "".join(lines)


def file_sha256(path: str) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def exclusive_workspace(directory: str, name: str, progress: Progress = no_progress) -> Iterator[str]:
    """Hold the right to do one kind of job in a directory, and give an empty workspace for it, removed afterwards.

    Waits while another cloche does the same job, and says so. What one that was killed has left is removed first:
    whoever holds the lock (which the kernel takes back with its process) is the only one who can have a workspace.
    """
    os.makedirs(directory, exist_ok=True)
    workspace = os.path.join(directory, f".{name}")
    with open(f"{workspace}.lock", "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting for another {name}", 0.0)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.lexists(workspace):
            remove_tree(workspace)
        os.makedirs(workspace)
        try:
            yield workspace
        finally:
            remove_tree(workspace)
