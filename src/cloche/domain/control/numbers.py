"""The requests about what a domain uses and what it was made from (layer 5)."""

from __future__ import annotations

import os

from cloche.domain.control.fields import Nothing
from cloche.domain.control.life import programs_of
from cloche.errors import DomainError
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.domain.control.life import Governed
    from cloche.domain.launcher import Launcher
    from cloche.errors import ClocheError
    from cloche.guest.job import Job

    Fail = Callable[[ClocheError], None]

#: What the guest's kernel says of itself; `cat` is in every guest.
_ASKED = (b"/bin/cat", b"/proc/uptime", b"/proc/loadavg", b"/proc/meminfo")
#: More than these files hold. The guest may say anything.
_MOST = 32 * 1024
_PATIENCE_S = 5.0
_SIGKILL = 9


class AskNumbers(Record):
    """What does your guest's kernel say of itself?"""

    def serve(
        self, launcher: Governed, fds: list[int], answer: Callable[[GuestText], None], fail: Fail
    ) -> None:
        """Carry it out: by a program of which no account is kept, so that it keeps no domain alive."""
        del fds
        domain = programs_of(launcher).domain
        domain.life.require_running()
        said = bytearray()

        def take(data: bytes) -> None:
            said.extend(data[: _MOST - len(said)])

        def done(job: Job) -> None:
            if job.failure is not None:
                fail(DomainError(f"the guest cannot be asked: {job.failure_text}"))
            else:
                answer(GuestText(bytes(said)))

        command = launcher.plan.command._replace(argv=_ASKED, strace=False, program=b"", cwd=b"/")
        job = domain.execute(command, stdout=take)
        job.on_done = done
        # A guest's `cat` need not be one.
        domain.reactor.call_later(_PATIENCE_S, lambda: job.signal(_SIGKILL))


class GuestText(Record):
    """The words of the guest's kernel, one file after the other: not to be trusted."""

    text: bytes


class Inspect(Record):
    """Write what you are, as JSON, into the file that comes along."""

    def serve(
        self, launcher: Launcher, fds: list[int], answer: Callable[[Nothing], None], fail: Fail
    ) -> None:
        """Carry it out."""
        from cloche.domain.inspection import inspect

        data = inspect(launcher).encode()
        try:
            while data:
                data = data[os.write(fds[0], data) :]
        except OSError as error:
            fail(DomainError(f"what the domain is cannot be written down: {error.strerror}"))
            return
        answer(Nothing())
