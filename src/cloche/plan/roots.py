"""Reading ``--root``, and what is done for a system tree that is not the host's (layer 2, pure)."""

from __future__ import annotations

from cloche.errors import UsageError
from cloche.model.guest import ANY_TYPE, MS_NODEV, MS_RDONLY, Mkdir, Mount, PutFirst, WaitPath, WriteFile
from cloche.model.jail import Bind, BindFlag
from cloche.model.machine import Devices
from cloche.model.request import RootKind
from cloche.plan.disks import FORMATS, device_name
from cloche.plan.guest import encode
from cloche.plan.stage import etc_files
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from cloche.model.facts import User
    from cloche.model.guest import Step
    from cloche.model.jail import RootOp
    from cloche.model.request import RunRequest

_FORM = "Write DIR, the name of a tar archive, or FILE[,format=raw|qcow2][,fs=TYPE][,part=N] for an image."
_APPEARS_MS = 20_000
_MOST_PARTITIONS = 128
#: Files that every guest has as its own; the tree's own users and groups stay, behind the caller's.
_OWN = ("/etc/hosts", "/etc/hostname", "/etc/machine-id", "/etc/resolv.conf")
_PUT_FIRST = ("/etc/passwd", "/etc/group")


class RootWord(Record):
    """The argument of ``--root`` taken apart; ``format`` is empty when it was not said."""

    path: str
    format: str = ""
    fs: str = ""
    part: int = 0


def parse_root(word: str) -> RootWord:
    """Read ``PATH[,format=FORMAT][,fs=TYPE][,part=N]``; options are taken from the right.

    Raises:
        UsageError: It is malformed.
    """
    if "\0" in word:
        raise UsageError(f"--root {word!r} holds a NUL byte, which no name can")
    path, options = word, {}
    while True:
        head, comma, tail = path.rpartition(",")
        name, equals, value = tail.partition("=")
        if not comma or not equals or name not in ("format", "fs", "part") or name in options:
            break
        options[name] = value
        path = head
    part = options.get("part", "0" if "part" not in options else "")
    if not path or ("fs" in options and not options["fs"].isalnum()):
        raise UsageError(f"--root {word!r} names no tree", hint=_FORM)
    if not (part.isascii() and part.isdigit()) or int(part[:4]) > _MOST_PARTITIONS:
        raise UsageError(f"--root {word!r}: {part!r} is no partition", hint=_FORM)
    if options.get("format", "raw") not in FORMATS:
        raise UsageError(f"--root {word!r}: there is no format {options['format']!r}", hint=_FORM)
    return RootWord(path, options.get("format", ""), options.get("fs", ""), int(part))


def check_root(request: RunRequest) -> None:
    """Look whether a machine as it is asked for can have a system tree of its own.

    Raises:
        UsageError: It cannot.
    """
    if request.root is None:
        return
    if request.layer is not None:
        raise UsageError(
            "a profile keeps changes to the host's tree, and --root has another one",
            hint="Give -t, or leave out --root.",
        )
    if request.root.kind == RootKind.IMAGE and request.devices == Devices.VMM:
        raise UsageError("--devices=vmm cannot have --root with an image", hint="Leave out --devices.")


def build_tree(source: str) -> tuple[RootOp, ...]:
    """Return what shows a directory of the host as a whole system tree."""
    return (Bind(encode(source), b"", BindFlag.READ_ONLY | BindFlag.NODEV | BindFlag.RECURSIVE),)


def build_image_steps(request: RunRequest, target: bytes) -> tuple[Step, ...]:
    """Return the steps that mount the image of a root, if that is what it is."""
    root = request.root
    assert root is not None
    disk = device_name(next(index for index, one in enumerate(request.disks) if one.tag == root.source))
    device = disk + (b"%d" % root.part if root.part else b"")
    return (
        WaitPath(disk, _APPEARS_MS),
        Mount(root.fs.encode() or ANY_TYPE, device, target, MS_RDONLY | MS_NODEV),
    )


def build_own_steps(request: RunRequest, user: User, hostname: str) -> tuple[Step, ...]:
    """Return the steps that make a strange tree this guest's: its names, the caller as a user, what must exist."""
    root = request.root
    assert root is not None
    user = user._replace(shell=root.shell)
    files = {
        path: (mode, content)
        for path, mode, content in etc_files(user, hostname=hostname, machine_id=root.machine_id)
    }
    steps: list[Step] = [
        Mkdir(b"/tmp", 0o1777),
        Mkdir(b"/var/tmp", 0o1777),
        Mkdir(b"/root", 0o700),
        Mkdir(b"/etc"),
    ]
    for path in _PUT_FIRST:
        mode, content = files[path]
        # The last line is the caller's; before it stand those that every tree has.
        line = content.splitlines(keepends=True)[-1]
        if (user.uid if path == "/etc/passwd" else user.gid) != 0:
            steps.append(PutFirst(path.encode(), mode, line))
    for path in _OWN:
        mode, content = files[path]
        steps.append(WriteFile(path.encode(), mode, 0, 0, content))
    return tuple(steps)
