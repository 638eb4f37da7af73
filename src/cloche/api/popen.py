"""A program in a guest, as ``subprocess.Popen`` shows one of the host (layer 5b)."""

from __future__ import annotations

import os
import subprocess
import threading
import time

from cloche.domain.outcome import failure
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import IO, Any, Self

    from cloche.api.loop import Loop
    from cloche.domain.domain import Domain
    from cloche.errors import ClocheError
    from cloche.guest.job import Job
    from cloche.model.guest import GuestCommand

    File = int | IO[Any] | None
    Ends = tuple[int | None, int | None, int | None]

PIPE = subprocess.PIPE
STDOUT = subprocess.STDOUT
DEVNULL = subprocess.DEVNULL
TimeoutExpired = subprocess.TimeoutExpired


class Popen:
    """A program in the guest; what ``Sandbox.popen`` returns. Same attributes and methods as ``subprocess.Popen``.

    Attributes:
        args: The program and its arguments, as they were given.
        pid: Its process id in the guest.
        returncode: Its status, negative for a signal; None while it runs.
        stdin, stdout, stderr: File objects for PIPE, else None.
    """

    def __init__(
        self,
        loop: Loop,
        args: list[Any],
        command: GuestCommand,
        files: tuple[File, File, File],
        text: tuple[str | None, str | None] | None,
    ) -> None:
        self._prepare(args, text)
        self._loop = loop
        self._job: Job | None = None
        loop.watch(self._lost)
        try:
            self._begin(files, lambda ends: loop.call(lambda domain: self._start(domain, command, ends)))
        except BaseException:
            loop.unwatch(self._lost)
            raise

    def _prepare(self, args: list[Any], text: tuple[str | None, str | None] | None) -> None:
        self.args = args
        self.returncode: int | None = None
        self.pid = 0
        self._error: ClocheError | None = None
        self._started = threading.Event()
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._watchers: list[Callable[[], None]] = []
        self._text = text
        self._readers: list[_Reader] = []
        self._writer: threading.Thread | None = None
        self.stdin: IO[Any] | None = None
        self.stdout: IO[Any] | None = None
        self.stderr: IO[Any] | None = None

    def _begin(self, files: tuple[File, File, File], start: Callable[[Ends], None]) -> None:
        theirs: list[int] = []
        try:
            start(self._open_files(files, theirs))
            self._started.wait()
            self._check()
        except BaseException:
            self._close_files()
            raise
        finally:
            # Whoever moves the bytes has copies; with ours closed, an end of file can be seen.
            for fd in theirs:
                os.close(fd)

    def _open_files(self, files: tuple[File, File, File], theirs: list[int]) -> Ends:
        ends: list[int | None] = []
        for number, file in enumerate(files):
            if file is None:
                ends.append(number)
            elif file == DEVNULL:
                ends.append(None)
            elif file == STDOUT and number == 2:
                ends.append(ends[1])
            elif file == PIPE:
                read, write = os.pipe()
                mine, guests = (write, read) if number == 0 else (read, write)
                theirs.append(guests)
                ends.append(guests)
                setattr(
                    self, ("stdin", "stdout", "stderr")[number], self._file(mine, "w" if number == 0 else "r")
                )
            else:
                ends.append(file if isinstance(file, int) else file.fileno())
        return ends[0], ends[1], ends[2]

    def _file(self, fd: int, mode: str) -> IO[Any]:
        if self._text is None:
            return open(fd, mode + "b")
        encoding, errors = self._text
        return open(fd, mode, encoding=encoding, errors=errors)

    def _start(self, domain: Domain, command: GuestCommand, ends: Ends) -> None:
        job = domain.execute(command, stdin=ends[0], stdout=ends[1], stderr=ends[2])
        self._job = job
        assert domain.programs is not None
        programs = domain.programs
        programs.joined(job)

        def started(_: Job) -> None:
            self.pid = job.pid or 0
            self._started.set()

        def done(_: Job) -> None:
            programs.over(job)
            if job.failure is not None:
                self._error = failure(job, command)
            elif job.exited is not None:
                self.returncode = -job.exited.value if job.exited.kind else job.exited.value
            self._finish()

        job.on_started = started
        job.on_done = done

    def _lost(self, error: ClocheError) -> None:
        self._error = error
        self._finish()

    def _finish(self) -> None:
        self._unwatch()
        self._started.set()
        with self._lock:
            self._done.set()
            watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher()

    def _unwatch(self) -> None:
        self._loop.unwatch(self._lost)

    def on_end(self, watcher: Callable[[], None]) -> None:
        """Call ``watcher`` once the program has ended, from whichever thread learns of it; at once if it has."""
        with self._lock:
            if not self._done.is_set():
                self._watchers.append(watcher)
                return
        watcher()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_files()
        self.wait()

    def _close_files(self) -> None:
        for file in (self.stdout, self.stderr, self.stdin):
            if file is not None:
                file.close()

    def poll(self) -> int | None:
        """Return the status, or None while the program runs.

        Raises:
            ClocheError: The machine has ended before the program.
        """
        return self._result() if self._done.is_set() else None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the program and return its status.

        Raises:
            TimeoutExpired: It did not end in time; it goes on.
            ClocheError: The machine has ended before the program.
        """
        if not self._done.wait(timeout):
            raise TimeoutExpired(self.args, timeout or 0.0)
        return self._result()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _result(self) -> int:
        self._check()
        assert self.returncode is not None
        return self.returncode

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Write ``input``, read everything, wait; like ``subprocess.Popen.communicate``.

        Raises:
            TimeoutExpired: It did not end in time; calling again goes on reading.
        """
        if self._writer is None:
            self._readers = [_Reader(file) for file in (self.stdout, self.stderr)]
            self._writer = threading.Thread(target=self._write, args=(input,), daemon=True)
            self._writer.start()
        deadline = None if timeout is None else time.monotonic() + timeout
        for reader in self._readers:
            reader.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if reader.is_alive():
                raise TimeoutExpired(self.args, timeout or 0.0)
        self.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        self._writer.join()
        return self._readers[0].result(), self._readers[1].result()

    def _write(self, data: Any) -> None:
        if self.stdin is None:
            return
        try:
            if data:
                self.stdin.write(data)
            self.stdin.close()
        except BrokenPipeError:
            return  # the program did not want all of it, as subprocess forgives too

    def send_signal(self, signo: int) -> None:
        """Send a signal to the program and its process group; nothing happens when it has ended."""
        job = self._job
        if job is not None and not self._done.is_set():
            self._loop.call(lambda domain: job.signal(signo))

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(15)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(9)


class _Reader(threading.Thread):
    """Reads one pipe to its end."""

    def __init__(self, file: IO[Any] | None) -> None:
        super().__init__(daemon=True)
        self._file = file
        self._data: Any = None
        self._error: Exception | None = None
        self.start()

    def run(self) -> None:
        if self._file is not None:
            try:
                self._data = self._file.read()
                self._file.close()
            except (OSError, ValueError) as error:
                self._error = error

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._data
