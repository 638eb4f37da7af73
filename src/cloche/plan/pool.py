"""Which runs a waiting machine of the pool can take (layer 2, pure).

What a machine is made with cannot be added later: its memory, CPUs, kernel, and whether it has a server for shares.
That is its key. Everything else of a run (words, environment, directory, user, limits, shares) comes with the run.
"""

from __future__ import annotations

from cloche.model.guest import MS_BIND, MS_NODEV, MS_NOSUID, MS_RDONLY, MS_REMOUNT, Clock, Entropy, Mount
from cloche.model.machine import DEFAULT_MEMORY_MIB, Devices
from cloche.model.request import RunRequest
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from cloche.model.guest import Step

#: All settings together keep so many machines at most: each has its memory.
MOST_MEMBERS = 32


class Setting(Record):
    """Machines that are to wait.

    Attributes:
        keep: How many.
        memory_mib, cpus, kernel: As in a request; None is what a run gets that does not say.
        share_later: Whether they have a server for shares.
    """

    keep: int
    memory_mib: int | None = None
    cpus: int | None = None
    kernel: str | None = None
    share_later: bool = False

    @property
    def key(self) -> str:
        """What a run must have in common with them."""
        return make_key(self.memory_mib, self.cpus, self.kernel, share_later=self.share_later)

    def request(self, argv: tuple[bytes, ...]) -> RunRequest:
        """Return the run that such a machine is made for."""
        return RunRequest(
            argv=argv,
            memory_mib=self.memory_mib,
            cpus=self.cpus,
            kernel=self.kernel,
            share_later=self.share_later,
        )


def make_key(memory_mib: int | None, cpus: int | None, kernel: str | None, *, share_later: bool) -> str:
    """Return the key as one word without a comma."""
    memory = DEFAULT_MEMORY_MIB if memory_mib is None else memory_mib
    return f"{memory}M{1 if cpus is None else cpus}c{'s' if share_later else 'n'}{kernel or ''}"


def why_not(request: RunRequest) -> str:
    """Return what keeps any machine that waits from taking the run, in a clause; empty for nothing."""
    asked = (
        (request.driver != "qemu", f"--driver {request.driver} makes another kind of domain"),
        (request.cold, "--cold was given"),
        (request.layer is not None, "a machine that waits has no profile's disk"),
        (request.root is not None, "--root has another tree than the machines that wait"),
        (bool(request.mounts), "--mount is done before a machine's first program"),
        (bool(request.disks), "a disk is not added to a machine that waits"),
        (request.network is not None, "a network card is not added to a machine that waits"),
        (request.hwrng, "--hwrng cannot be added to a machine that runs"),
        (bool(request.vsock), "--vsock cannot be added to a machine that runs"),
        (bool(request.includes), "--include is done before a machine's first program"),
        (request.devices != Devices.PROCESS, f"--devices={request.devices} is another arrangement"),
        (bool(request.insecure), "--insecure-no-jail makes other jails"),
        (request.accelerator is not None, "--accel was given"),
        (
            request.boot_log or request.boot_timeout_s is not None,
            "--boot-log and --boot-timeout are about a boot",
        ),
        (request.agent_log, "--agent-log begins with the machine"),
        (request.shell_on_failure, "--shell-on-failure is not offered there"),
        (any("," in word for word in (request.kernel or "",)), "the kernel has a comma in its name"),
    )
    return next((reason for applies, reason in asked if applies), "")


def fitting_keys(request: RunRequest, *, is_root: bool) -> tuple[str, ...]:
    """Return the keys of the machines that can take the run, the best first; ``why_not`` was asked.

    A server that can become anybody's (root's, for shares that can be written to) is not given to a run that would
    not have one by itself. An ordinary user's has no rights but the user's.
    """
    writable = any(share.writable for share in request.shares)
    wants = bool(request.shares) or request.share_later
    kinds = []
    if not wants:
        kinds.append(False)
    if not is_root or writable or request.share_later:
        kinds.append(True)
    return tuple(
        make_key(request.memory_mib, request.cpus, request.kernel, share_later=kind) for kind in kinds
    )


#: Programs of the system that write nothing; they run once, as whom the machine is made for, so that what most programs
#: need has been looked up, read and translated: the dynamic linker, libc, a shell, a pipe, a listing, Python where
#: there is one (without its site: what an administrator adds there is not looked at). One that is missing is left out.
WARM_UP = (
    (b"/bin/sh", b"-c", b"/bin/ls -l / | /bin/cat"),
    (b"/usr/bin/python3", b"-I", b"-S", b"-c", b"pass"),
    (b"/bin/true",),
)

#: The file systems of a guest that a program can write to, and the flags they are mounted with.
_WRITABLE = (
    (b"/", 0),
    (b"/run", MS_NOSUID | MS_NODEV),
    (b"/dev", MS_NOSUID),
    (b"/dev/shm", MS_NOSUID | MS_NODEV),
)


def build_close_steps() -> tuple[Step, ...]:
    """Return the steps after which nothing can be written in a guest: what is not written need not be cleaned up."""
    return tuple(Mount(b"", b"", path, MS_REMOUNT | MS_BIND | MS_RDONLY | flags) for path, flags in _WRITABLE)


def build_open_steps() -> tuple[Step, ...]:
    """Return the steps that take these back."""
    return tuple(Mount(b"", b"", path, MS_REMOUNT | MS_BIND | flags) for path, flags in _WRITABLE)


def build_fresh_steps() -> tuple[Step, ...]:
    """Return the steps that make a machine that has waited its own again: the time, and randomness nobody has seen."""
    return (Clock(), Entropy())
