"""What is common to the jails of a machine's processes (layer 4, pure)."""

from __future__ import annotations

import os

from cloche.errors import HostError, UsageError
from cloche.model.jail import (
    AS_IS,
    INDISPENSABLE,
    INSECURE_PARTS,
    OWN,
    Bind,
    BindFlag,
    Jail,
    JailFlag,
    Namespace,
    Symlink,
)
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.model.facts import HostFacts
    from cloche.model.jail import RootOp
    from cloche.model.plan import ProcessPlan

#: How the host's own files are shown in a jail.
READ_ONLY = BindFlag.READ_ONLY | BindFlag.NOSUID | BindFlag.NODEV

_CLOSED = JailFlag.NO_NEW_PRIVS | JailFlag.SETSID | JailFlag.NOT_DUMPABLE
_ALONE = Namespace.MOUNT | Namespace.NET | Namespace.IPC | Namespace.UTS | Namespace.CGROUP | Namespace.PID
_RLIMIT_CORE, _RLIMIT_NOFILE = 4, 7


def closed_jail(facts: HostFacts, policy: str, root: tuple[RootOp, ...] = (), *, keep_caps: int = 0) -> Jail:
    """Return a jail with nothing to see but ``root``, the calls a policy allows, and where root asks an id of its own.

    Raises:
        HostError: The policy's filter was not built.
    """
    ids = OWN if facts.user.uid == 0 else AS_IS
    return Jail(
        namespaces=_ALONE,
        uid=ids,
        gid=ids,
        keep_caps=keep_caps,
        flags=_CLOSED,
        hostname=b"",
        cwd=b"/",
        rlimits=((_RLIMIT_CORE, 0, 0),),
        seccomp=_filter(facts, policy),
        root=root,
    )


def device_jail(facts: HostFacts, policy: str, root: tuple[RootOp, ...] = (), *, keep_caps: int = 0) -> Jail:
    """Return the jail of a device process: closed, and with as many open files as this host allows.

    Raises:
        HostError: The policy's filter was not built.
    """
    jail = closed_jail(facts, policy, root, keep_caps=keep_caps)
    files = (_RLIMIT_NOFILE, facts.nofile_hard, facts.nofile_hard)
    return jail._replace(rlimits=(*jail.rlimits, files))


def library_root(facts: HostFacts) -> tuple[RootOp, ...]:
    """Return what a program of the distribution finds its libraries by."""
    if_there = READ_ONLY | BindFlag.OPTIONAL
    root: list[RootOp] = [
        Bind(tree, tree, if_there | BindFlag.RECURSIVE) for tree in (b"/usr/lib", b"/usr/lib64")
    ]
    root.append(Bind(b"/etc/ld.so.cache", b"/etc/ld.so.cache", if_there))
    for path in ("/lib", "/lib64"):
        fact = facts.paths.get(path)
        if fact is not None and fact.kind == "link":
            root.append(Symlink(os.fsencode(fact.target), path.encode()))
        elif fact is not None:
            root.append(Bind(path.encode(), path.encode(), if_there | BindFlag.RECURSIVE))
    return tuple(root)


def _filter(facts: HostFacts, name: str) -> bytes:
    """Return the filter of system calls for a program; a jail without one is none."""
    found = facts.filters[name]
    if not found:
        raise HostError(
            f"the filter of system calls for {name} is missing",
            hint="Run `make setup` in cloche's directory.",
        )
    return found


def check_insecure(parts: tuple[str, ...], facts: HostFacts) -> None:
    """Look whether these parts of the jails can be left out, and whether the others can be had.

    Raises:
        UsageError: There is no such part.
        HostError: There are no ids for root's processes.
    """
    for part in parts:
        if part not in INSECURE_PARTS:
            *others, last = INSECURE_PARTS
            raise UsageError(
                f"there is no part {part!r} of the jails that can be left out",
                hint=f"There are {', '.join(others)} and {last}.",
            )
    if facts.user.uid == 0 and facts.ids is None and "ids" not in parts:
        raise HostError(
            "there are no ids here that the processes of a domain could have for themselves",
            hint="Run cloche as an ordinary user; --insecure-no-jail=ids lets them run as root.",
        )


def give_up(process: ProcessPlan, parts: tuple[str, ...]) -> ProcessPlan:
    """Leave parts of a process's jail out, as the user has asked for. Device processes keep the filters in them."""
    if "seccomp" in parts:
        argv = process.argv
        if b"-sandbox" in argv:
            place = argv.index(b"-sandbox")
            argv = (*argv[:place], *argv[place + 2 :])
        process = process._replace(argv=argv, jail=process.jail._replace(seccomp=b""))
    if "namespaces" in parts:
        kept = process.jail.namespaces & INDISPENSABLE
        process = process._replace(jail=process.jail._replace(namespaces=kept))
    if "ids" in parts:
        process = process._replace(jail=process.jail._replace(uid=AS_IS, gid=AS_IS))
    return process
