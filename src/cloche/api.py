"""The Python API (layer 5b): ``run`` and ``Sandbox``, with the names and behaviour of ``subprocess``.

Everything here may be called from any thread. The host program is never forked: the domain's processes belong to a
supervisor started by posix_spawn, and one thread of the host program per sandbox talks to the guest.
"""

from __future__ import annotations

import os
import subprocess
import threading
from typing import IO, TYPE_CHECKING, Any

from cloche.domain.domain import Domain, State
from cloche.domain.outcome import failure
from cloche.domain.prepare import prepare_plan
from cloche.domain.remote import RemoteLauncher
from cloche.errors import ClocheError, DomainError, UsageError
from cloche.host.facts import collect_facts
from cloche.host.reactor import Reactor
from cloche.model.request import RunRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from cloche.guest.job import Job
    from cloche.model.guest import GuestCommand
    from cloche.model.request import Include, Share

    Word = str | bytes | os.PathLike[str]
    File = int | IO[Any] | None

PIPE = subprocess.PIPE
STDOUT = subprocess.STDOUT
DEVNULL = subprocess.DEVNULL
CalledProcessError = subprocess.CalledProcessError
CompletedProcess = subprocess.CompletedProcess
TimeoutExpired = subprocess.TimeoutExpired


def run(
    args: Sequence[Word], *, timeout: float | None = None, sandbox: Sandbox | None = None, **options: Any
) -> CompletedProcess[Any]:
    """Run a program in a machine of its own and return when it has ended, like ``subprocess.run``.

    Args:
        args: The program and its arguments. A single string is refused: there is no shell.
        timeout: Seconds for the program itself; the start of the machine is not counted.
        sandbox: Run it there instead of in a fresh machine.
        **options: Those of ``Sandbox`` and of ``Sandbox.run`` (``input``, ``capture_output``, ``text``, ``check`` ...).

    Raises:
        CalledProcessError: ``check`` was given and the status is not 0.
        TimeoutExpired: The time has passed; the program was killed.
        ClocheError: The machine or the program could not be started.
    """
    running = {name: options.pop(name) for name in RUN_OPTIONS if name in options}
    if sandbox is not None:
        if options:
            raise UsageError(f"{', '.join(options)} cannot be given together with sandbox")
        return sandbox.run(args, timeout=timeout, **running)
    with Sandbox(**options) as fresh:
        return fresh.run(args, timeout=timeout, **running)


RUN_OPTIONS = (
    "input",
    "capture_output",
    "text",
    "encoding",
    "errors",
    "check",
    "stdin",
    "stdout",
    "stderr",
    "env",
    "cwd",
    "user",
)


class Sandbox:
    """A machine in which programs are run. A context manager: leaving it ends the machine and everything in it.

    Args:
        share: Host directories the guest sees: paths, ``"DIR:rw"``, or ``"DIR:ro:at=PATH"`` as on the command line.
        include: Host files copied into the guest: a mapping of guest path to host path.
        memory_mib: The most memory it may use, in MiB; None for the default.
        cpus: Virtual CPUs; None for one.
        driver: ``qemu`` or ``bwrap``.
        kernel: The guest kernel's name; None lets cloche choose.
        accelerator: ``kvm`` or ``tcg``; None for what was found to work.
        privileged: Run programs as root of the guest.
        boot_timeout_s: Seconds until the guest must answer.

    Raises:
        ClocheError: From ``start`` (and so from ``with``): what the command line would have said.
    """

    def __init__(
        self,
        *,
        share: Sequence[Word] = (),
        include: Mapping[str, Word] | None = None,
        memory_mib: int | None = None,
        cpus: int | None = None,
        driver: str = "qemu",
        kernel: str | None = None,
        accelerator: str | None = None,
        privileged: bool = False,
        boot_timeout_s: float | None = None,
    ) -> None:
        self._request = RunRequest(
            argv=(b"true",),
            driver=driver,
            shares=_shares(share),
            includes=_includes(include or {}),
            memory_mib=memory_mib,
            cpus=cpus,
            kernel=kernel,
            accelerator=accelerator,
            privileged=privileged,
            boot_timeout_s=boot_timeout_s,
        )
        self._loop: _Loop | None = None
        self._base: GuestCommand | None = None

    def __enter__(self) -> Sandbox:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the machine and return when programs can be run in it.

        Raises:
            ClocheError: It could not be started.
            DomainError: It was started already.
        """
        if self._loop is not None:
            raise DomainError("the sandbox was started already")
        plan = prepare_plan(self._request, collect_facts())
        self._base = plan.command
        self._loop = _Loop(plan)
        try:
            self._loop.open()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the machine. What programs wrote to shares is on the host when this returns. May be called twice."""
        if self._loop is not None:
            self._loop.close()

    def popen(
        self,
        args: Sequence[Word],
        *,
        stdin: File = None,
        stdout: File = None,
        stderr: File = None,
        text: bool = False,
        encoding: str | None = None,
        errors: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Word | None = None,
        user: str | None = None,
    ) -> Popen:
        """Start a program and return at once, like ``subprocess.Popen``.

        ``stdin``, ``stdout`` and ``stderr`` are PIPE, DEVNULL, a descriptor or an open file; None means this
        program's own. ``env`` is added to the guest's environment. ``stderr`` may be STDOUT.

        Raises:
            ClocheError: The sandbox does not run, or the program could not be started.
        """
        loop = self._require_loop()
        return Popen(
            loop,
            self._command(args, env, cwd, user),
            (stdin, stdout, stderr),
            (encoding, errors) if text or encoding or errors else None,
        )

    def run(
        self,
        args: Sequence[Word],
        *,
        input: str | bytes | None = None,
        capture_output: bool = False,
        timeout: float | None = None,
        check: bool = False,
        stdin: File = None,
        stdout: File = None,
        stderr: File = None,
        **options: Any,
    ) -> CompletedProcess[Any]:
        """Run a program to its end, like ``subprocess.run``.

        Raises:
            CalledProcessError, TimeoutExpired, ClocheError: As ``run`` of the module.
        """
        if input is not None:
            if stdin is not None:
                raise ValueError("stdin and input cannot be given together")
            stdin = PIPE
        if capture_output:
            if stdout is not None or stderr is not None:
                raise ValueError("stdout and stderr cannot be given together with capture_output")
            stdout = stderr = PIPE
        with self.popen(args, stdin=stdin, stdout=stdout, stderr=stderr, **options) as process:
            try:
                out, err = process.communicate(input, timeout=timeout)
            except TimeoutExpired as expired:
                process.kill()
                expired.stdout, expired.stderr = process.communicate()
                raise
            except BaseException:
                process.kill()
                raise
            status = process.wait()
        if check and status:
            raise CalledProcessError(status, list(args), out, err)
        return CompletedProcess(list(args), status, out, err)

    def call(self, args: Sequence[Word], **options: Any) -> int:
        """Run a program and return its status, like ``subprocess.call``."""
        return self.run(args, **options).returncode

    def check_call(self, args: Sequence[Word], **options: Any) -> int:
        """Run a program that must succeed, like ``subprocess.check_call``."""
        return self.run(args, check=True, **options).returncode

    def check_output(self, args: Sequence[Word], **options: Any) -> Any:
        """Return what a program writes to stdout, like ``subprocess.check_output``."""
        return self.run(args, check=True, stdout=PIPE, **options).stdout

    def _require_loop(self) -> _Loop:
        if self._loop is None:
            raise DomainError(
                "the sandbox was not started", hint="Use it in a `with` statement, or call start()."
            )
        return self._loop

    def _command(
        self, args: Sequence[Word], env: Mapping[str, str] | None, cwd: Word | None, user: str | None
    ) -> GuestCommand:
        assert self._base is not None
        if isinstance(args, (str, bytes)):
            raise UsageError(
                "the program must be given as a list of words: there is no shell to take a string apart"
            )
        if not args:
            raise UsageError("no program was named")
        command = self._base._replace(argv=tuple(os.fsencode(word) for word in args))
        if cwd is not None:
            command = command._replace(cwd=os.fsencode(cwd))
        if env:
            merged = dict(word.partition(b"=")[::2] for word in command.env)
            merged.update((os.fsencode(name), os.fsencode(value)) for name, value in env.items())
            command = command._replace(env=tuple(name + b"=" + value for name, value in merged.items()))
        if user is not None:
            from cloche.plan.guest import resolve_user

            person = resolve_user(self._request._replace(user=user), collect_facts().user)
            command = command._replace(uid=person.uid, gid=person.gid, groups=(person.gid,))
        return command


def _shares(words: Sequence[Word]) -> tuple[Share, ...]:
    from cloche.host.paths import resolve_share

    return tuple(resolve_share(os.fsdecode(word)) for word in words)


def _includes(pairs: Mapping[str, Word]) -> tuple[Include, ...]:
    from cloche.host.paths import resolve_include

    return tuple(resolve_include(f"{guest}={os.fsdecode(host)}") for guest, host in pairs.items())


class _Loop:
    """The thread that drives one domain. Calls come from any thread; answers come through events."""

    def __init__(self, plan: Any) -> None:
        self._reactor = Reactor()
        self._domain = Domain(self._reactor, plan, launcher=RemoteLauncher)
        self._domain.on_open = self._opened
        self._domain.on_end = self._ended
        self._opened_or_over = threading.Event()
        self._error: ClocheError | None = None
        self._over = False
        self._watchers: set[Callable[[ClocheError], None]] = set()
        self._thread = threading.Thread(target=self._run, name="cloche", daemon=True)

    def open(self) -> None:
        self._thread.start()
        self._opened_or_over.wait()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._domain.start()
            self._reactor.run_until(lambda: self._over)
        except ClocheError as error:
            self._ended(error)
        finally:
            self._domain.close()

    def _opened(self) -> None:
        self._opened_or_over.set()

    def _ended(self, error: ClocheError) -> None:
        self._error = error
        self._over = True
        self._opened_or_over.set()
        for watcher in list(self._watchers):
            watcher(error)

    def call(self, function: Callable[[Domain], Any]) -> Any:
        """Run ``function`` in the loop's thread and return what it returns or raise what it raises."""
        if self._error is not None:
            raise self._error
        if not self._thread.is_alive():
            raise DomainError("the sandbox has ended")
        done = threading.Event()
        result: list[Any] = [None, None]

        def work() -> None:
            try:
                result[0] = function(self._domain)
            except BaseException as error:  # handed to the caller's thread
                result[1] = error
            done.set()

        def lost(error: ClocheError) -> None:
            result[1] = result[1] or error
            done.set()

        self._watchers.add(lost)
        try:
            self._reactor.call_soon_threadsafe(work)
            while not done.wait(1.0):
                if not self._thread.is_alive() and not done.is_set():
                    raise self._error or DomainError("the sandbox has ended")
        finally:
            self._watchers.discard(lost)
        if result[1] is not None:
            raise result[1]
        return result[0]

    def watch(self, watcher: Callable[[ClocheError], None]) -> None:
        self._watchers.add(watcher)

    def unwatch(self, watcher: Callable[[ClocheError], None]) -> None:
        self._watchers.discard(watcher)

    def close(self) -> None:
        if self._thread.is_alive() and threading.current_thread() is not self._thread:

            def finish() -> None:
                def over() -> None:
                    self._over = True

                if self._domain.state is State.OPEN:
                    self._domain.finish(over)
                else:
                    over()

            self._reactor.call_soon_threadsafe(finish)
            self._thread.join()
            self._reactor.close()
        self._error = self._error or DomainError("the sandbox has ended")


class Popen:
    """A program in the guest; what ``Sandbox.popen`` returns. Same attributes and methods as ``subprocess.Popen``.

    Attributes:
        args: The program and its arguments, as bytes.
        pid: Its process id in the guest.
        returncode: Its status, negative for a signal; None while it runs.
        stdin, stdout, stderr: File objects for PIPE, else None.
    """

    def __init__(
        self,
        loop: _Loop,
        command: GuestCommand,
        files: tuple[File, File, File],
        text: tuple[str | None, str | None] | None,
    ) -> None:
        self.args = list(command.argv)
        self.returncode: int | None = None
        self.pid = 0
        self._loop = loop
        self._job: Job | None = None
        self._error: ClocheError | None = None
        self._started = threading.Event()
        self._done = threading.Event()
        self._text = text
        self.stdin: IO[Any] | None = None
        self.stdout: IO[Any] | None = None
        self.stderr: IO[Any] | None = None
        theirs: list[int] = []
        try:
            ends = self._open_files(files, theirs)
            loop.watch(self._lost)
            loop.call(lambda domain: self._start(domain, command, ends))
            self._started.wait()
        except BaseException:
            for file in (self.stdin, self.stdout, self.stderr):
                if file is not None:
                    file.close()
            loop.unwatch(self._lost)
            raise
        finally:
            # The loop has its own copies; with ours closed, an end of file can be seen.
            for fd in theirs:
                os.close(fd)
        if self._error is not None:
            raise self._error

    def _open_files(
        self, files: tuple[File, File, File], theirs: list[int]
    ) -> tuple[int | None, int | None, int | None]:
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
            return open(fd, mode + "b", buffering=-1 if mode == "r" else 0)
        encoding, errors = self._text
        return open(fd, mode, encoding=encoding, errors=errors)

    def _start(
        self, domain: Domain, command: GuestCommand, ends: tuple[int | None, int | None, int | None]
    ) -> None:
        job = domain.execute(command, stdin=ends[0], stdout=ends[1], stderr=ends[2])
        self._job = job

        def started(_: Job) -> None:
            self.pid = job.pid or 0
            self._started.set()

        def done(_: Job) -> None:
            if job.failure is not None:
                self._error = failure(job, command, ())
            elif job.exited is not None:
                self.returncode = -job.exited.value if job.exited.kind else job.exited.value
            self._finish()

        job.on_started = started
        job.on_done = done

    def _lost(self, error: ClocheError) -> None:
        self._error = error
        self._finish()

    def _finish(self) -> None:
        self._loop.unwatch(self._lost)
        self._started.set()
        self._done.set()

    def __enter__(self) -> Popen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (self.stdout, self.stderr, self.stdin):
            if file is not None:
                file.close()
        self.wait()

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

    def _result(self) -> int:
        if self._error is not None:
            raise self._error
        assert self.returncode is not None
        return self.returncode

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Write ``input``, read everything, wait; like ``subprocess.Popen.communicate``.

        Raises:
            TimeoutExpired: It did not end in time; calling again goes on reading.
        """
        if not hasattr(self, "_readers"):
            self._readers = [_Reader(file) for file in (self.stdout, self.stderr)]
            self._writer = threading.Thread(target=self._write, args=(input,), daemon=True)
            self._writer.start()
        import time

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
