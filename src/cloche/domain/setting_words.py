"""Whether the words in files of settings can be, and what each is for (layer 5): the parsers of the options are asked.

The host is not looked at: a directory that is not there is an error of the run that wants it.
"""

from __future__ import annotations

import os

from cloche.errors import UsageError
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.model.settings import Key


def check_word(key: Key, word: str) -> None:
    """Look at a word whose form was read already.

    Raises:
        UsageError: No run can do what it says.
    """
    check = _CHECKS.get(key.name)
    if check is not None:
        check(word)


def identify(name: str, word: str) -> object:
    """Return what a member of a list is for; two of the same list that are for the same cannot both be."""
    if name == "share":
        from cloche.plan.shares import parse_share

        source, _, target = parse_share(word)
        return os.path.normpath(target or os.path.expanduser(source))
    if name == "include":
        from cloche.plan.shares import parse_include

        return parse_include(word)[0]
    if name == "mount":
        from cloche.plan.mounts import parse_mount

        mount = parse_mount(word)
        return os.path.normpath(mount.target or os.path.expanduser(mount.source))
    if name in ("disk", "env"):
        return word.partition("=")[0]
    return word


def _path(path: str) -> None:
    """Refuse a path that would lead elsewhere from each working directory."""
    if path.startswith("~") and os.path.expanduser(path) == path:
        raise UsageError(
            f"the path {path!r} begins with a user who is not known here",
            hint="Begin it with a slash or with ~/.",
        )
    if not path.startswith(("/", "~")):
        raise UsageError(
            f"the path {path!r} is relative, and files of settings are nowhere in particular",
            hint="Begin it with a slash or with ~/.",
        )


def _share(word: str) -> None:
    from cloche.plan.shares import normalize_guest_path, parse_share

    parsed = parse_share(word)
    _path(parsed.source)
    if parsed.target is not None:
        normalize_guest_path(parsed.target)


def _include(word: str) -> None:
    from cloche.plan.shares import parse_include

    _path(parse_include(word)[1])


def _disk(word: str) -> None:
    from cloche.plan.disks import parse_disk

    disk = parse_disk(word)
    if not disk.size_bytes:
        _path(disk.path)


def _mount(word: str) -> None:
    from cloche.model.request import MountKind
    from cloche.plan.mounts import parse_mount

    mount = parse_mount(word)
    if mount.kind in (MountKind.HOST_BIND, MountKind.HOST_IMAGE):
        _path(mount.source)


def _root(word: str) -> None:
    from cloche.plan.roots import parse_root

    _path(parse_root(word).path)


def _net(word: str) -> None:
    from cloche.plan.networks import parse_network

    parsed = parse_network(word)
    if parsed is not None and parsed[1]:
        _path(parsed[1])


def _env(word: str) -> None:
    if not word.partition("=")[0]:
        raise UsageError(
            f"{word!r} names no variable", hint="Write NAME=VALUE, or NAME to pass on the host's."
        )


def _workdir(word: str) -> None:
    from cloche.plan.shares import normalize_guest_path

    normalize_guest_path(word)


def _name(word: str) -> None:
    from cloche.host.names import check_name

    check_name(word)


def _profile(word: str) -> None:
    from cloche.host.names import check_name

    check_name(word, "profile")


def _driver(word: str) -> None:
    from cloche.drivers.registry import DRIVER_NAMES

    _one_of("driver", word, DRIVER_NAMES)


def _accelerator(word: str) -> None:
    from cloche.model.machine import Accelerator

    _one_of("accelerator", word, (Accelerator.KVM, Accelerator.TCG))


def _devices(word: str) -> None:
    from cloche.model.machine import NOT_APART, Devices

    _one_of("place for devices", word, (Devices.PROCESS, *NOT_APART))


def _insecure(word: str) -> None:
    from cloche.model.jail import INSECURE_PARTS

    _one_of("part of a jail", word, tuple(INSECURE_PARTS))


def _one_of(what: str, word: str, choices: tuple[str, ...]) -> None:
    if word not in choices:
        raise UsageError(f"there is no {what} {word!r}", hint=f"There are {', '.join(choices)}.")


def _memory(word: str) -> None:
    from cloche.model.machine import MIN_MEMORY_MIB
    from cloche.model.options import parse_size_mib

    if parse_size_mib(word) < MIN_MEMORY_MIB:
        raise UsageError(
            f"{word!r} is too little for a machine", hint=f"Give it {MIN_MEMORY_MIB} MiB or more."
        )


def _cpus(word: str) -> None:
    from cloche.model.machine import MAX_CPUS

    if int(word) > MAX_CPUS:
        raise UsageError(f"a machine cannot have {word} CPUs", hint=f"Give it between 1 and {MAX_CPUS}.")


def _some(word: str) -> None:
    if not word:
        raise UsageError("it is empty", hint="Leave it out instead.")


_CHECKS: dict[str, Callable[[str], None]] = {
    "share": _share,
    "include": _include,
    "include_list": _path,
    "mount": _mount,
    "disk": _disk,
    "root": _root,
    "net": _net,
    "env": _env,
    "workdir": _workdir,
    "name": _name,
    "default_profile": _profile,
    "driver": _driver,
    "accelerator": _accelerator,
    "devices": _devices,
    "insecure_no_jail": _insecure,
    "memory": _memory,
    "timings": _path,
    "cpus": _cpus,
    "command": _some,
    "user": _some,
    "kernel": _some,
}
