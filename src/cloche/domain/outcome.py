"""How a program's end is told (layer 5): the status a shell would see, or an error."""

from __future__ import annotations

import errno
import os

from cloche.errors import ClocheError, CommandNotExecutableError, CommandNotFoundError, DomainError
from cloche.host.text import escape_untrusted
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.guest.job import Job
    from cloche.model.guest import GuestCommand

_NOT_EXECUTABLE = (errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.EISDIR, errno.ELIBBAD, errno.ETXTBSY)


def failure(job: Job, command: GuestCommand) -> ClocheError:
    """Return the error for a program that was not started."""
    assert job.failure is not None
    name = escape_untrusted(command.argv[0], 200)
    code = job.failure.errno
    step = job.failure_text
    if step.startswith("cwd"):
        return CommandNotFoundError(
            f"the guest has no directory {escape_untrusted(command.cwd, 200)} to start in",
            hint="Share it with --here or --share, or choose another one with --workdir.",
        )
    if code in (errno.ENOENT, errno.ENOTDIR):
        hint = "Only what lies in /usr, /opt and the shares exists in the guest."
        if b"/" in command.argv[0]:
            hint += " Share its directory with --here or --share."
        return CommandNotFoundError(f"{name} was not found in the guest", hint=hint)
    if code == errno.ENOEXEC:
        return CommandNotExecutableError(
            f"{name} is not a program this machine can run: wrong architecture, or a script without #!"
        )
    if code == errno.E2BIG:
        return ClocheError(f"{name} cannot be started: the arguments and the environment are too long")
    if code in _NOT_EXECUTABLE:
        return CommandNotExecutableError(f"{name} cannot be executed: {os.strerror(code)}")
    return DomainError(f"{name} cannot be started: {step or os.strerror(code)}")
