"""``Domain`` (layer 5b): running domains, whoever has started them, and those that outlive this program."""

from __future__ import annotations

import os
import threading

from cloche.api.machine import Machine
from cloche.api.popen import Popen
from cloche.api.programs import encode_variables, encode_words
from cloche.api.sandbox import Sandbox
from cloche.domain.control import talk, wire
from cloche.domain.control.client import Control
from cloche.domain.control.fields import store
from cloche.domain.control.joining import Exec, Started, Words
from cloche.domain.find import find_any, find_domain
from cloche.domain.following import (
    read_output,
    stop_domain,
    wait_for_program,
)
from cloche.domain.snapshotting import BeginAgain, restore
from cloche.errors import ClocheError, DomainError, ProtocolError
from cloche.host import records, rundir
from cloche.host.facts import collect_facts
from cloche.host.names import check_name
from cloche.host.outlog import CLOCHE, STDOUT
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any, Self

    from cloche.api.popen import Ends, File
    from cloche.api.programs import Wanted, Word


class Output(Record):
    """Something a detached program has written.

    Attributes:
        time: When, in seconds since the epoch.
        stream: ``stdout``, ``stderr``, or ``cloche`` for what cloche itself had to say.
        data: The bytes.
    """

    time: float
    stream: str
    data: bytes


class Domain(Machine):
    """A domain of the caller's, found by its name or made to outlive this program. It holds nothing open.

    Every method raises a ``ClocheError`` when the domain has ended, or cannot do what is asked.
    """

    def __init__(self, ident: str) -> None:
        self._ident = ident

    @property
    def ident(self) -> str:
        """Its identity, which no other domain ever has."""
        return self._ident

    def __repr__(self) -> str:
        return f"Domain({self.ident!r})"

    @classmethod
    def start(
        cls,
        args: Sequence[Word],
        *,
        name: str = "",
        env: Mapping[str, str] | None = None,
        cwd: Word | None = None,
        user: str | None = None,
        timeout: float | None = None,
        interactive: bool = False,
        terminal: bool = False,
        log_mib: int = 16,
        **options: Any,
    ) -> Self:
        """Start a program in a machine of its own that outlives this program (``cloche run --detach``).

        Args:
            args: The program and its arguments.
            name: What the domain is to be called.
            env: Added to the guest's environment.
            cwd: Where the program starts, in the guest.
            user: Whom it runs as.
            timeout: Seconds after which it is ended.
            interactive: Keep its input open, for ``cloche attach``.
            terminal: Give it a terminal.
            log_mib: How much of its output is kept, in MiB.
            **options: Those of ``Sandbox``.

        Raises:
            ClocheError: It could not be started; what the command line would have said.
        """
        from cloche.domain.detached import Options
        from cloche.domain.remote import start_detached

        request = Sandbox(**options).request._replace(
            argv=encode_words(args),
            name=check_name(name) if name else "",
            env=encode_variables(env),
            workdir=None if cwd is None else os.fsdecode(cwd),
            user=user,
            timeout_s=timeout,
        )
        return cls(start_detached(request, collect_facts(), Options(terminal, interactive, log_mib))[0])

    @classmethod
    def find(cls, name: str) -> Self:
        """Return the running domain of this name or identity, or whose identity alone begins so.

        Raises:
            DomainError: There is none, or more than one.
        """
        return cls(find_domain(name).ident)

    @classmethod
    def list(cls, *, ended: bool = False) -> tuple[Self, ...]:
        """Return the caller's running domains; with ``ended`` also detached ones that have ended (``cloche ps -a``)."""
        running = [one.ident for one in rundir.find_running()]
        kept = [one.ident for one in records.read_all() if one.ident not in running] if ended else []
        return tuple(cls(ident) for ident in (*running, *kept))

    @property
    def name(self) -> str:
        """What it is called; empty for nothing."""
        _, running, kept = find_any(self.ident)
        return running.name if running is not None else kept.name if kept is not None else ""

    def _popen(self, wanted: Wanted) -> Popen:
        asked = Exec(False, 0, 0, wanted.user or "", wanted.cwd or "")
        return _Joined(
            self.ident, wanted.words, (asked, Words(wanted.argv, wanted.env)), wanted.files, wanted.text
        )

    def logs(self, *, follow: bool = False) -> Iterator[Output]:
        """Give what a detached domain's program has written; with ``follow`` also what it will write.

        Raises:
            DomainError: It is not a detached domain's.
        """
        words = {STDOUT: "stdout", CLOCHE: "cloche"}
        for entry in read_output(self.ident, follow=follow):
            yield Output(entry.time_ns / 1e9, words.get(entry.stream, "stderr"), entry.data)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the domain's own program and return its status, 128 and more for a signal.

        Raises:
            DomainError: It did not end in time, or its status is not known.
        """
        return wait_for_program(self.ident, timeout)[0]

    def stop(self, grace: float = 10.0) -> None:
        """End the domain and return when it has ended: SIGTERM first, and after ``grace`` seconds its machine."""
        stop_domain(self.ident, grace)

    @classmethod
    def restore(cls, snapshot: str, *, name: str = "") -> Self:
        """Start a domain that goes on from a snapshot and outlives this program (``cloche snapshot restore``).

        Raises:
            SnapshotError: There is none of that name, or nothing here can go on from it.
            ShareError: What was shared is not there any more.
        """
        return cls(restore(snapshot, name, BeginAgain)[0])

    def remove(self) -> None:
        """Forget a detached domain that has ended: its log, and how it ended.

        Raises:
            DomainError: It runs.
        """
        if any(running.ident == self.ident for running in rundir.find_running()):
            raise DomainError(f"the domain {self.ident} runs", hint="End it first: stop().")
        records.remove(self.ident)


class _Joined(Popen):
    """A program in a domain that some supervisor owns; the bytes go between it and the caller's descriptors."""

    def __init__(
        self,
        ident: str,
        args: list[Any],
        asked: tuple[Exec, Words],
        files: tuple[File, File, File],
        text: tuple[str | None, str | None] | None,
    ) -> None:
        self._prepare(args, text)
        self._ident = ident
        self._control = Control(ident, None)
        self._sending = threading.Lock()
        try:
            self._begin(files, lambda ends: self._ask(*asked, ends))
        except BaseException:
            self._control.close()
            raise

    def _ask(self, asked: Exec, words: Words, ends: Ends) -> None:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        file = store(words)
        try:
            fds = (*(null if end is None else end for end in ends), file)
            self._control.send(wire.encode_request(asked), fds)
        except OSError as error:
            raise DomainError(f"the domain {self._ident} cannot be asked: {error.strerror}") from None
        finally:
            os.close(null)
            os.close(file)
        answer = self._control.receive()
        if not answer:
            raise self._gone()
        self.pid = wire.read_answer(answer, Started).pid
        self._started.set()
        threading.Thread(target=self._follow, name="cloche-join", daemon=True).start()

    def _follow(self) -> None:
        """Hear what becomes of it."""
        try:
            while not self._done.is_set():
                packet = self._control.receive()
                if not packet:
                    raise self._gone()
                if not talk.is_event(packet):
                    wire.decode_answer(packet)
                    raise ProtocolError("the domain's supervisor answers twice")
                event = talk.decode_event(packet)
                if event.kind == talk.EXITED:
                    self.returncode = -event.value if event.by_signal else event.value
                    self._finish()
        except ClocheError as error:
            self._lost(error)
        finally:
            with self._sending:
                self._control.close()

    def _gone(self) -> DomainError:
        return DomainError(f"the domain {self._ident} has ended before the program")

    def _unwatch(self) -> None:
        """There is nobody to be told."""

    def send_signal(self, signo: int) -> None:
        """Send a signal to the program and its process group; nothing happens when it has ended."""
        with self._sending:
            if not self._done.is_set() and self._control.fileno() >= 0:
                try:
                    self._control.send(talk.encode_order(talk.Order(talk.SIGNAL, signo)))
                except OSError:
                    return  # it has ended, which the other thread hears
