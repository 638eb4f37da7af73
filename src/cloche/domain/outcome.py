"""How a program's end is told (layer 5): the status a shell would see, or an error."""

from __future__ import annotations

import errno

from cloche.errors import ClocheError, CommandNotExecutableError, CommandNotFoundError, DomainError
from cloche.host.text import describe_errno, escape_untrusted
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.guest.job import Job
    from cloche.model.guest import GuestCommand

_NOT_EXECUTABLE = (
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ELIBBAD,
    errno.ETXTBSY,
    errno.EINVAL,
    errno.ELOOP,
)
_LONGEST = 120


def failure(job: Job, command: GuestCommand) -> ClocheError:
    """Return the error for a program that was not started."""
    assert job.failure is not None
    name = escape_untrusted(command.argv[0], _LONGEST)
    code = job.failure.errno
    step = job.failure_text
    if step.startswith("cwd"):
        return _no_directory(escape_untrusted(command.cwd, _LONGEST), code)
    if step.startswith("interpreter of"):
        return CommandNotFoundError(
            f"{name} cannot be executed: what interprets it does not exist in the guest",
            hint="A script names it in its first line, after #!; of a binary, `file` names the loader.",
        )
    if code in (errno.ENOENT, errno.ENOTDIR):
        hint = "Only what lies in /usr, /opt and the shares exists in the guest."
        if b"/" in command.argv[0]:
            hint += " Share its directory with --here or --share."
        return CommandNotFoundError(f"{name} was not found in the guest", hint=hint)
    if code == errno.ENOEXEC:
        return CommandNotExecutableError(
            f"{name} is not a program this machine can run: wrong architecture, or a script without #!",
            hint=f"`file {name}` says what it is; a shell script can be run with sh {name}.",
        )
    if code == errno.E2BIG:
        return ClocheError(
            f"{name} cannot be started: the arguments and the environment are too long",
            hint="xargs gives many arguments to a program in portions.",
        )
    if (step, code) == ("number of jobs", errno.EAGAIN):
        return DomainError(
            f"{name} cannot be started: as many programs run in the domain as it can hold",
            hint="Wait until one of them has ended.",
        )
    if code in _NOT_EXECUTABLE:
        return CommandNotExecutableError(
            f"{name} cannot be executed: {describe_errno(code)}",
            hint="Its permissions, those of the directories above it and those of its interpreter decide.",
        )
    return DomainError(
        f"{name} cannot be started: {step}: {describe_errno(code)}",
        hint="--agent-log and --boot-log tell more.",
    )


def _no_directory(path: str, code: int) -> ClocheError:
    elsewhere = "choose another one with --workdir"
    if code == errno.ENOENT:
        return CommandNotFoundError(
            f"the guest has no directory {path} to start in",
            hint=f"Share it with --here or --share, or {elsewhere}.",
        )
    return CommandNotExecutableError(
        f"the program cannot start in {path}: {describe_errno(code)}",
        hint=f"Name a directory that the program may enter: {elsewhere}.",
    )
