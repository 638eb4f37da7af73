"""Whether a machine that waits is still what a run would get (layer 5): what it was made of has not changed since.

The guest believes for ever what it has looked up of the system tree. A machine that waits has looked up what its
warm-up needed; so what that was, where packages note that something was installed, and all that the stage and the
machine are made of are remembered as the kernel tells them apart, and compared when somebody takes the machine.
"""

from __future__ import annotations

import os

from cloche.errors import ClocheError
from cloche.host import accel, templates
from cloche.host.facts import find_caller, read_skeleton
from cloche.kernel.store import find_kernel
from cloche.plan.pool import WARM_UP
from cloche.plan.stage import stage_candidates
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.model.facts import HostFacts
    from cloche.model.plan import LaunchPlan

#: Where package managers note what they have done, and where programs are put without one.
_INSTALLED = (
    "/var/lib/dpkg/status",
    "/var/lib/rpm",
    "/usr/lib/sysimage/rpm",
    "/var/lib/pacman/local",
    "/lib/apk/db/installed",
    *(f"/usr/{name}" for name in ("bin", "sbin", "lib", "lib64", "libexec", "share")),
    *(f"/usr/local/{name}" for name in ("bin", "sbin", "lib", "share")),
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/locale",
)
#: What the programs of the warm-up are loaded with.
_LOADED = (
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/x86_64-linux-gnu/libc.so.6",
    "/lib64/libc.so.6",
    "/usr/lib/libc.so.6",
)


class Fingerprint:
    """What a machine was made of, at the time when this is made."""

    def __init__(self, plan: LaunchPlan, facts: HostFacts) -> None:
        assert plan.machine is not None
        assert plan.template is not None
        kernel = plan.machine.kernel
        self._facts = facts
        self._kernel = kernel.ident
        self._paths: tuple[str | bytes, ...] = (
            *stage_candidates(),
            *_INSTALLED,
            *(os.path.realpath(path) for path in _LOADED),
            *_python_libraries(),
            *(os.path.realpath(argv[0]) for argv in WARM_UP),
            *(tool for tool in facts.tools if isinstance(tool, str) and tool),
            kernel.path,
            kernel.initrd,
            os.path.join(plan.template.directory, templates.INFO),
            os.path.abspath(__file__),
        )
        self._seen = self._look()

    def _look(self) -> list[tuple[int, ...] | None]:
        return [_tell_apart(path) for path in self._paths]

    def changed(self, wanted_kernel: str | None) -> str:
        """Return what has changed since, in a clause; empty for nothing."""
        for path, before, now in zip(self._paths, self._seen, self._look(), strict=True):
            if before != now:
                return f"{os.fsdecode(path)} has changed"
        if find_caller() != self._facts.user:
            return "the caller's account has changed"
        if read_skeleton("/etc/skel") != self._facts.skeleton:
            return "/etc/skel has changed"
        if accel.kvm_result() != self._facts.kvm:
            return "what is known of KVM has changed"
        try:
            if find_kernel(wanted_kernel).id != self._kernel:
                return "another kernel is used now"
        except ClocheError as error:
            return error.message
        return ""


def _python_libraries() -> list[str]:
    """Return where Python's own modules are."""
    try:
        return [f"/usr/lib/{name}" for name in sorted(os.listdir("/usr/lib")) if name.startswith("python3")]
    except OSError:
        return []


def _tell_apart(path: str | bytes) -> tuple[int, ...] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return (
        status.st_dev,
        status.st_ino,
        status.st_mode,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
