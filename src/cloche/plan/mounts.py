"""Reading ``--mount``, and what the guest does for shares and mounts (layer 2, pure).

The host's view of the paths comes from ``host.mounts``. An image is only looked into by the guest's kernel, and the
container around a qcow2 image only by the process of its disk.
"""

from __future__ import annotations

from cloche.errors import UsageError
from cloche.model.guest import (
    ANY_TYPE,
    MS_BIND,
    MS_NODEV,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    CheckPlace,
    Mount,
)
from cloche.model.request import MOUNT_OPTIONS, MountKind, Share
from cloche.plan.disks import FORMATS, device_name
from cloche.plan.guest import encode, make_directory
from cloche.plan.places import order_places, outer_place
from cloche.plan.shares import normalize_guest_path
from cloche.plan.sizes import parse_size_bytes
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloche.model.facts import User
    from cloche.model.guest import Step
    from cloche.model.request import Disk, GuestMount, RunRequest
    from cloche.plan.places import Place

_FORM = (
    "Write host-bind:DIR[,rw][,at=PATH], host-image:FILE,at=PATH[,rw][,format=raw|qcow2][,fs=TYPE][,part=N], "
    "guest-bind:PATH,at=PATH[,ro] or ram:at=PATH[,size=SIZE]."
)
_DEFAULT_RAM = 64 << 20
_MOST_PARTITIONS = 128
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
_LONGEST_TYPE = 32
#: Nobody becomes root by a program of an image, and nothing in one is a device.
_CLOSED = MS_NOSUID | MS_NODEV
#: File systems that keep no owners of files: all of them are then the program's user's.
_OWNERLESS = ("vfat", "msdos")


class MountWord(Record):
    """The argument of ``--mount`` taken apart.

    Attributes:
        kind: One of MountKind.
        source: What is shown; empty for RAM.
        target: Where; None for the same place as on the host.
        writable: Whether programs of the guest may change it.
        format: HOST_IMAGE: ``raw`` or ``qcow2``, empty when it was not said.
        fs, part, size_bytes: As in a GuestMount.
    """

    kind: str
    source: str
    target: str | None
    writable: bool
    format: str = ""
    fs: str = ""
    part: int = 0
    size_bytes: int = 0


def parse_mount(word: str) -> MountWord:
    """Read ``KIND:SOURCE,OPTION,...``; options are taken from the right, so that a file's name may hold commas.

    Raises:
        UsageError: It is malformed.
    """
    if "\0" in word:
        raise UsageError(f"--mount {word!r} holds a NUL byte, which no name can")
    kind, colon, rest = word.partition(":")
    if not colon or kind not in MOUNT_OPTIONS:
        raise UsageError(f"--mount {word!r}: there is no mount {kind!r}", hint=_FORM)
    options: dict[str, str] = {}
    while rest:
        head, comma, tail = rest.rpartition(",")
        name, equals, value = tail.partition("=")
        key = "rw" if name == "ro" else name
        is_option = name in (*MOUNT_OPTIONS[kind], "at") and bool(equals) == (name not in ("ro", "rw"))
        # What stands first is the source, whatever it looks like; memory has none.
        if not is_option or key in options or not (comma or kind == MountKind.RAM):
            break
        options[key] = value if equals else name
        rest = head
    return _make_word(word, kind, rest, options)


def _make_word(word: str, kind: str, source: str, options: dict[str, str]) -> MountWord:
    def refuse(reason: str) -> UsageError:
        return UsageError(f"--mount {word!r} {reason}", hint=_FORM)

    if kind == MountKind.RAM and source:
        raise refuse(f"has no option {source!r}")
    if kind != MountKind.RAM and not source:
        raise refuse("does not say what is to be mounted")
    target = options.get("at")
    if target is None and kind != MountKind.HOST_BIND:
        raise refuse("does not say where: at=PATH is missing")
    if target is not None:
        target = normalize_guest_path(target)
    if kind == MountKind.GUEST_BIND:
        source = normalize_guest_path(source)
    kept = options.get("format", "")
    if "format" in options and kept not in FORMATS:
        raise UsageError(f"--mount {word!r}: there is no format {kept!r}", hint="There are raw and qcow2.")
    fs = options.get("fs", "")
    if "fs" in options and not (0 < len(fs) <= _LONGEST_TYPE and set(fs) <= _LETTERS and fs != "auto"):
        raise refuse(f"names no type of a file system: {fs!r}")
    part = options.get("part", "")
    if "part" in options and not (
        part.isascii() and part.isdigit() and 0 < int(part[:4]) <= _MOST_PARTITIONS
    ):
        raise UsageError(
            f"--mount {word!r}: {part!r} is no partition",
            hint=f"They are counted from 1 to {_MOST_PARTITIONS}.",
        )
    size_bytes = parse_size_bytes(options["size"], f"--mount {word!r}") if "size" in options else _DEFAULT_RAM
    return MountWord(
        kind=kind,
        source=source,
        target=target,
        writable=kind == MountKind.RAM
        or options.get("rw", "rw" if kind == MountKind.GUEST_BIND else "ro") == "rw",
        format=kept,
        fs=fs,
        part=int(part or 0),
        size_bytes=size_bytes,
    )


def build_place_steps(request: RunRequest, user: User, person: User, source: bytes) -> list[Step]:
    """Return the steps that put shares and mounts at their places; the disks are there already.

    Args:
        request: Whose shares and mounts.
        user: Whose home the guest has.
        person: Whom the program runs as, and so whom memory and file systems without owners belong to.
        source: Where the k-th share is found, ``%d`` standing for k.
    """
    places = order_places(request.shares, request.mounts)
    steps: list[Step] = []
    for place in places:
        steps += make_place(place, places, user)
        if isinstance(place, Share):
            steps += bind_share(place, source % request.shares.index(place))
        else:
            steps.append(_mount(place, request.disks, person))
            if place.kind == MountKind.GUEST_BIND and not place.writable:
                flags = MS_REMOUNT | MS_BIND | MS_RDONLY | _CLOSED
                steps.append(Mount(b"", b"", encode(place.target), flags))
    return steps


def make_place(place: Place, places: Sequence[Place], user: User) -> list[Step]:
    """Return the steps after which there is a directory at a place, given what else is mounted.

    None is made in a directory of the host's or in an image: there it must be. A symbolic link there could lead
    anywhere, so none is followed.
    """
    outer = outer_place(place.target, places)
    if outer is None or (not isinstance(outer, Share) and outer.kind == MountKind.RAM):
        return make_directory(place.target, user)
    if isinstance(place, Share) and isinstance(outer, Share):
        # The host has it there, by its real name (``places.check_places``).
        return []
    root = outer.target.rstrip("/")
    return [CheckPlace(encode(outer.target), encode(place.target[len(root) + 1 :]))]


def bind_share(share: Share, source: bytes) -> list[Step]:
    """Return the steps that show a share, which the guest's root has at ``source``, at its place."""
    target = encode(share.target)
    steps: list[Step] = [Mount(b"", source, target, MS_BIND | MS_REC)]
    if not share.writable:
        steps.append(Mount(b"", b"", target, MS_REMOUNT | MS_BIND | MS_RDONLY | _CLOSED))
    return steps


def _mount(mount: GuestMount, disks: tuple[Disk, ...], person: User) -> Mount:
    target = encode(mount.target)
    if mount.kind == MountKind.GUEST_BIND:
        return Mount(b"", encode(mount.source), target, MS_BIND | MS_REC)
    owner = b"uid=%d,gid=%d" % (person.uid, person.gid)
    if mount.kind == MountKind.RAM:
        return Mount(b"tmpfs", b"ram", target, _CLOSED, b"mode=0755,size=%d,%s" % (mount.size_bytes, owner))
    device = device_name(next(index for index, disk in enumerate(disks) if disk.tag == mount.source))
    if mount.part:
        device += b"%d" % mount.part
    return Mount(
        mount.fs.encode() or ANY_TYPE,
        device,
        target,
        _CLOSED | (0 if mount.writable else MS_RDONLY),
        owner if mount.fs in ("", *_OWNERLESS) else b"",
    )
