"""The errors cloche raises (layer 0, standard library only).

Every error is one sentence that says what failed and why, an optional hint that says what to do, and the exit status
the command line ends with. Only ``cloche.cli`` prints them; everything below raises.
"""

from __future__ import annotations

from cloche.lean import IntEnum


class ExitCode(IntEnum):
    """Exit statuses that are cloche's own and not the program's (as in qrexec and env(1))."""

    TIMEOUT = 124
    FAILED = 125
    DENIED = 126
    NOT_FOUND = 127


class ClocheError(Exception):
    """Anything that stops cloche from doing what was asked.

    Args:
        message: One sentence: what failed, then why. No full stop at its end.
        hint: What the user can do about it, a sentence of its own.
        detail: Somebody else's words that explain it (a console's last lines, a tool's), made safe to show.
    """

    exit_code: ExitCode = ExitCode.FAILED

    def __init__(self, message: str, *, hint: str | None = None, detail: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail


class UsageError(ClocheError):
    """The command line or the arguments of a call do not fit together."""


class HostError(ClocheError):
    """The host lacks something: a tool, a device, a right, a kernel feature."""


class MissingToolError(HostError):
    """A program cloche needs is not installed."""

    def __init__(self, tool: str, *, tried: tuple[str, ...] = (), hint: str | None = None) -> None:
        where = f" (looked in {', '.join(tried)})" if tried else ""
        super().__init__(f"cannot find {tool}{where}", hint=hint)
        self.tool = tool


class TemplateError(ClocheError):
    """A saved machine cannot be made or used."""


class SnapshotError(ClocheError):
    """A running domain cannot be saved, or what was saved cannot be used."""


class SettingsError(ClocheError):
    """A file of settings cannot be read, is wrong, or cannot be trusted."""


class KernelError(ClocheError):
    """No usable guest kernel, or one that is damaged."""


class ShareError(ClocheError):
    """A directory of the host cannot be shared as asked."""


class ProfileError(ClocheError):
    """A profile cannot be made, used or changed as asked."""


class MountError(ClocheError):
    """Something cannot be mounted in a guest as asked."""


class DiskError(ClocheError):
    """A disk cannot be given to a guest as asked."""


class NetworkError(ClocheError):
    """A guest cannot be given a network as asked."""


class LaunchError(ClocheError):
    """A machine or one of its processes did not come up."""


class BootTimeoutError(LaunchError):
    """The guest kernel did not reach the agent in time."""


class DomainError(ClocheError):
    """A domain is not in a state in which this can be done, or ended unexpectedly."""


class MachineEndedError(DomainError):
    """The VMM has exited by itself: the guest has stopped its machine, or QEMU gave up."""


class ProtocolError(ClocheError):
    """The other side of a socket said something the specification does not allow."""


class CommandNotFoundError(ClocheError):
    """The program does not exist in the guest."""

    exit_code = ExitCode.NOT_FOUND


class CommandNotExecutableError(ClocheError):
    """The program exists in the guest and cannot be executed."""

    exit_code = ExitCode.DENIED


class TimeLimitError(ClocheError):
    """The time limit given by the user has passed."""

    exit_code = ExitCode.TIMEOUT
