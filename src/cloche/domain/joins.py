"""Programs that join a running domain (layer 5), each for a client whose streams it has.

The client passes its descriptors, so the bytes go between them and the guest through the supervisor alone. What the
client cannot do for itself when it is killed is done here: its program is told by SIGHUP, and its terminal gets its
mode back.
"""

from __future__ import annotations

import fcntl
import os
import stat
from functools import partial

from cloche.domain.control import talk
from cloche.domain.control.joining import Started
from cloche.domain.control.life import programs_of
from cloche.domain.control.wire import encode_answer, encode_failure
from cloche.errors import UsageError
from cloche.guest.keys import in_lines
from cloche.guest.pumps import InputPump
from cloche.host.keeper import MODE_SIZE
from cloche.host.pids import stat_fields
from cloche.host.programs import find_program
from cloche.model.request import RunRequest
from cloche.plan.guest import resolve_user
from cloche.plan.join import build_join
from cloche.plan.stage import SYSTEM_TREES
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.domain.control.joining import Exec, Words
    from cloche.domain.control.life import Governed
    from cloche.domain.control.talk import Link, Order
    from cloche.guest.job import Job
    from cloche.model.guest import GuestCommand
    from cloche.model.plan import LaunchPlan

_SIGHUP, _SIGCONT = 1, 18
_TCGETS, _TCSETS = 0x5401, 0x5402
#: The control modes in ``struct termios``: drivers correct them, so they say nothing about who has set the mode.
_CONTROL = slice(8, 12)


class Join:
    """One such program.

    Raises:
        ClocheError: It cannot be started here, or the domain has ended.
    """

    def __init__(self, launcher: Governed, asked: Exec, words: Words, fds: list[int], link: Link) -> None:
        self._programs = programs_of(launcher)
        self._link = link
        # Asked and acted upon in one turn of the loop: nothing can end in between.
        self._programs.domain.life.require_running()
        self._command = _command(launcher.plan, asked, words)
        self._watch = TerminalWatch(fds[0])
        stdin, stdout, stderr = streams(fds, terminal=asked.terminal)
        try:
            self._job = job = self._programs.domain.execute(
                self._command,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                terminal=(asked.rows, asked.cols) if asked.terminal else None,
            )
        except BaseException:
            self._watch.close()
            raise
        self._programs.joined(job, is_together=is_same_job(link.client))
        if isinstance(job.stdin, InputPump):
            job.stdin.may_read = partial(may_read, link.client, lines=not asked.terminal)
        job.on_started = self._started
        job.on_stopped = self._stopped
        job.on_done = self._done
        link.listener = self

    def _started(self, job: Job) -> None:
        self._link.send(encode_answer(Started(job.pid or 0)))

    def _stopped(self, job: Job, signo: int) -> None:
        del job
        self._link.send(talk.encode_event(talk.Event(talk.STOPPED, signo)))

    def _done(self, job: Job) -> None:
        self._link.listener = None
        self._watch.close()
        if job.failure is not None:
            from cloche.domain.outcome import failure

            self._link.send(encode_failure(failure(job, self._command)), last=True)
        else:
            self._link.send(talk.encode_event(end_of(job)), last=True)
        # The machine may go with it: what there was to say has been said.
        self._programs.over(job)

    def heard(self, order: Order) -> None:
        """Do what the client says."""
        obey(self._job, self._watch, order)

    def gone(self) -> None:
        """The client was killed: so is what it has started, unless that knows how to go on alone."""
        self._watch.restore()
        for signo in (_SIGHUP, _SIGCONT):
            self._job.signal(signo)
        for pump in (self._job.stdin, self._job.stdout, self._job.stderr):
            if pump is not None:
                pump.abandon()  # type: ignore[union-attr]


def obey(job: Job, watch: TerminalWatch, order: Order) -> None:
    """Pass on what a client says about its signals and its terminal."""
    if order.kind == talk.SIGNAL:
        job.signal(order.first)
    elif order.kind == talk.RESIZE:
        job.resize(min(order.first, 0xFFFF), min(order.second, 0xFFFF))
    elif order.kind == talk.CONTINUE:
        job.signal(_SIGCONT)
    elif order.kind == talk.RAW:
        watch.raw(order.modes)
    else:
        watch.restored()


def end_of(job: Job) -> talk.Event:
    """Return what a client is told of a program's end."""
    ended = job.exited
    assert ended is not None
    return talk.Event(talk.EXITED, ended.value, bool(ended.kind), bool(ended.oom))


def _command(plan: LaunchPlan, asked: Exec, words: Words) -> GuestCommand:
    user = plan.sharing.user
    person = None
    if asked.user:
        person = resolve_user(RunRequest(words.argv, user=asked.user), user)
        if plan.machine is None and person.uid != user.uid:
            raise UsageError(
                f"the {plan.driver} driver runs programs as {user.name} only",
                hint="Leave out --user, or use exec.",
            )
    command = build_join(plan.command, words.argv, words.env, asked.workdir, person)
    # Found here it need not be searched for in the guest, where each directory costs a request.
    shown = () if plan.request is not None and plan.request.root is not None else SYSTEM_TREES
    return command._replace(program=find_program(command, tuple(os.fsencode(path) for path in shown)))


def streams(fds: list[int], *, terminal: bool) -> tuple[int | None, int | None, int | None]:
    """Return what the session gets for a client's three descriptors.

    /dev/null needs no stream, and where stdout and stderr lead to the same place one stream keeps their order.
    """
    from cloche.guest.session import STDOUT

    if terminal:
        return fds[0], fds[1], None
    stdin, stdout, stderr = (None if is_null(fd) else fd for fd in fds)
    if stdout is not None and stderr is not None:
        out, err = os.fstat(stdout), os.fstat(stderr)
        if (out.st_dev, out.st_ino) == (err.st_dev, err.st_ino):
            stderr = STDOUT
    return stdin, stdout, stderr


def is_null(fd: int) -> bool:
    """Tell whether a descriptor is /dev/null."""
    status = os.fstat(fd)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 3)


def may_read(client: int, fd: int, *, lines: bool) -> bool:
    """Tell whether what is typed on a client's terminal is its program's: it is in the foreground there."""
    if client:
        try:
            fields = stat_fields(client)
        except (FileNotFoundError, ProcessLookupError):
            return False
        if fields[2] != fields[5]:
            return False
    return not lines or in_lines(fd)


def is_same_job(client: int) -> bool:
    """Tell whether a client and this process are one job of a shell, as the two ends of a pipeline are."""
    try:
        return client > 0 and os.getpgid(client) == os.getpgrp()
    except ProcessLookupError:
        return False


class TerminalWatch:
    """Gives a client's terminal its mode back when the client cannot: it was killed."""

    def __init__(self, fd: int) -> None:
        self._fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) if os.isatty(fd) else -1
        self._modes = b""

    def raw(self, modes: bytes) -> None:
        """Note what its mode was, and what the client makes it."""
        self._modes = modes

    def restored(self) -> None:
        """Note that the client has set it back itself."""
        self._modes = b""

    def restore(self) -> None:
        """Set it back, unless somebody has set another mode meanwhile; then forget the terminal."""
        if self._fd >= 0 and self._modes:
            saved, raw = self._modes[:MODE_SIZE], self._modes[MODE_SIZE:]
            try:
                now = fcntl.ioctl(self._fd, _TCGETS, bytes(MODE_SIZE))
                if _without_control(now) == _without_control(raw):
                    fcntl.ioctl(self._fd, _TCSETS, saved)
            except OSError:
                pass  # the terminal is gone, and its mode with it
        self.close()

    def close(self) -> None:
        """Forget the terminal. May be called twice."""
        self._modes = b""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _without_control(mode: bytes) -> bytes:
    return mode[: _CONTROL.start] + mode[_CONTROL.stop :]
