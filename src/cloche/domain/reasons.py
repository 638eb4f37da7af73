"""Why a domain did not start, or has ended (layer 5)."""

from __future__ import annotations

import errno

from cloche.errors import (
    BootTimeoutError,
    DiskError,
    DomainError,
    LaunchError,
    MachineEndedError,
    NetworkError,
)
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.host.warden import Exited, Failed, Warden
    from cloche.model.plan import ProcessPlan

_SIGKILL = 9
_SIGSYS = 31
_DOCTOR = "`cloche doctor` tries every part on this host."


def too_late(patience_s: float, tail: tuple[str, ...]) -> BootTimeoutError:
    """Return the error of a guest that did not answer; ``tail`` is what it has said last."""
    return BootTimeoutError(
        f"the guest did not answer within {patience_s:g} seconds"
        + (", and its last words were" if tail else ", and said nothing"),
        detail=tail,
        hint="--boot-log shows all it says, --boot-timeout gives it more time, --kernel another kernel.",
    )


def how(event: Exited) -> str:
    """Return how a process has ended, in words that go on a sentence."""
    return f"was killed by signal {event.signal}" if event.signal else f"exited with status {event.status}"


def ended(event: Exited, process: ProcessPlan, how: str, said: tuple[str, ...]) -> DomainError:
    """Return why a domain has ended together with a process that ``said`` something before."""
    if process.name == "vmm" and event.status == 0:
        return MachineEndedError(
            "the guest's kernel has stopped the machine",
            detail=said,
            hint="--boot-log shows all it says; --kernel takes another kernel, `cloche kernel list` names them.",
        )
    hint = _DOCTOR
    if event.signal == _SIGKILL:
        hint = "Somebody or the kernel (for want of memory?) has ended it; `dmesg` tells the latter."
    elif event.signal == _SIGSYS:
        hint = "It made a system call that its policy does not allow: an attack, or a defect to be reported."
    kind = MachineEndedError if process.name == "vmm" and not event.signal else DomainError
    return kind(f"the domain ended: its process {process.name} {how}", detail=said, hint=hint)


def by_program(done: str) -> DomainError:
    """Return why a domain has ended whose machine was ``done`` (switched off, say) by a program in it."""
    return DomainError(
        f"a program in the guest has {done} its machine, and ended itself with it",
        hint="A machine lives as long as the program it was started for: let that one end.",
    )


def died_often(process: ProcessPlan, how: str, said: tuple[str, ...]) -> DomainError:
    """Return why a process that has died is not started again."""
    return DomainError(f"the domain ended: its process {process.name} {how}", detail=said, hint=_DOCTOR)


def unusable(process: ProcessPlan, said: tuple[str, ...]) -> DiskError:
    """Return why a disk cannot be: its process looked at the file and would find the same again."""
    return DiskError(
        f"cannot use {process.files[0].path} as a disk",
        detail=said,
        hint="Say its format: format=raw or format=qcow2, the latter without a backing file.",
    )


def is_stranded(event: Exited, process: ProcessPlan) -> bool:
    """Whether this is passt, and says that it can do nothing here: it would say the same again."""
    return process.name == "passt" and event.status > 0


def stranded(how: str, said: tuple[str, ...]) -> NetworkError:
    """Return why a domain cannot have a network."""
    return NetworkError(
        f"the guest cannot be connected with the host's network: passt {how}",
        detail=said,
        hint="Look whether this host has a network itself: `ip route` shows a default route then.",
    )


def gone(warden: Warden, error: LaunchError, name: Callable[[int], str]) -> LaunchError:
    """Return what a warden said before it went, if it said anything; ``name`` tells what a number stands for."""
    import os

    from cloche.host.warden import Failed, Spawned

    try:
        heard = warden.receive()
    except LaunchError:
        return error
    for event in heard:
        if isinstance(event, Spawned):
            os.close(event.pidfd)
    return next((not_started(event, name(event.id)) for event in heard if isinstance(event, Failed)), error)


def not_started(event: Failed, what: str) -> LaunchError:
    """Return why a process, or with it the domain, was not started."""
    hint = "`cloche doctor` says what this host allows."
    if event.makes_namespaces:
        from cloche.host.userns import namespace_remedy

        hint = f"{namespace_remedy()} (`cloche doctor` tries it again)"
        if event.what == "make namespaces":
            hint += "; --insecure-no-jail=namespaces does without some of them"
    elif event.what == "seccomp":
        hint = "This kernel cannot filter system calls so; --insecure-no-jail=seccomp starts it unfiltered."
    elif event.errno == errno.ENOENT and event.what.startswith("bind "):
        hint = "It was there a moment ago: share a directory that stays."
    elif event.what.startswith("exec "):
        hint = "The program is damaged or not for this host: `make setup`, and `cloche doctor` tries it."
    return LaunchError(f"cannot start {what}: {event.reason()}", hint=hint)
