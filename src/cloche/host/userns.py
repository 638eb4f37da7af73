"""Whether this host lets the caller make the namespaces a domain needs (layer 3a)."""

from __future__ import annotations

import os

from cloche.errors import ClocheError
from cloche.host.tools import find_own_binary
from cloche.host.warden import WARDEN_ID, Failed, Ready, Warden
from cloche.model.jail import Bind, BindFlag, Dir, Jail, Namespace, Proc, SpawnSpec, Tmpfs
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from cloche.model.jail import RootOp


class NamespaceProbe(Record):
    """What a trial showed, and the exact command that mends it."""

    works: bool
    detail: str
    remedy: str = ""


def probe_namespaces() -> NamespaceProbe:
    """Make a domain's namespaces and a jail with every kind of mount, nested user namespace included."""
    binary = find_own_binary("cloche-warden")
    if not binary:
        return NamespaceProbe(False, "cannot be tried: cloche-warden is not built", "make setup")
    try:
        with Warden.start(binary) as warden:
            first = warden.receive(wait=True)[0]
            if isinstance(first, Failed) and first.id == WARDEN_ID:
                return NamespaceProbe(False, f"refused: {first.reason()}", namespace_remedy())
            if not isinstance(first, Ready):
                return NamespaceProbe(False, "the warden did not come up")
            return _probe_jail(warden)
    except ClocheError as error:
        return NamespaceProbe(False, error.message, namespace_remedy())


def _probe_jail(warden: Warden) -> NamespaceProbe:
    read_only = BindFlag.READ_ONLY | BindFlag.NODEV | BindFlag.RECURSIVE | BindFlag.OPTIONAL
    trees = tuple(Bind(path, path, read_only) for path in (b"/usr", b"/bin", b"/lib", b"/lib64"))
    root: tuple[RootOp, ...] = (Dir(b"/tmp"), Proc(b"/proc"), Tmpfs(b"/tmp", 1 << 20), *trees)
    everything = Namespace.MOUNT | Namespace.NET | Namespace.IPC | Namespace.UTS | Namespace.CGROUP
    for name, namespaces in (("jails", everything), ("nested user namespaces", everything | Namespace.USER)):
        spec = SpawnSpec(0, b"probe", (b"/usr/bin/true",), (), Jail(namespaces, root=root))
        try:
            ended = warden.spawn_and_wait(spec)
        except ClocheError as error:
            return NamespaceProbe(False, f"{name}: {error.message}", namespace_remedy())
        if ended.status != 0:
            return NamespaceProbe(False, f"{name}: the trial ended with status {ended.status}")
    return NamespaceProbe(True, "user, mount, pid and network namespaces, nested too")


def namespace_remedy() -> str:
    """Return the command that takes away what is known to forbid user namespaces."""
    for path, wanted in (
        ("kernel/apparmor_restrict_unprivileged_userns", "0"),
        ("kernel/unprivileged_userns_clone", "1"),
    ):
        value = _read(path)
        if value and value != wanted:
            return f"sudo sysctl -w {path.replace('/', '.')}={wanted}"
    for kind in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup"):
        if _read(f"user/max_{kind}_namespaces") == "0":
            return f"sudo sysctl -w user.max_{kind}_namespaces=15000"
    return "ask whoever runs this host (a container, a hardened kernel?) to allow user namespaces"


def _read(name: str) -> str:
    try:
        with open(os.path.join("/proc/sys", name), encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
