"""What QEMU allows a device: to be added when a machine is restored, to be saved while it is used (layer 4, pure).

Nothing here is believed: ``tests/domain/test_abilities.py`` tries every entry with both QEMUs and fails where this
table says something else. ``docs/devices.md`` shows it with what QEMU said, word for word.
"""

from __future__ import annotations

from itertools import pairwise

from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Iterator


class Ability(Record):
    """What one QEMU allows one kind of device: empty for yes, else why not, in QEMU's words.

    Attributes:
        added_at_restore: Whether it may be added to a machine whose saved state does not have it.
        saved: Whether a machine that uses it can be saved, and restored with a new process behind the device.
    """

    added_at_restore: str
    saved: str


#: The versions of QEMU that were tried. Any other is taken for the newest of them that is not newer than itself.
TRIED = ((7, 2), (10, 0))

_ALL = Ability("", "")
_BLOCKED = "State blocked by non-migratable device"
_NOTHING = Ability(_BLOCKED, _BLOCKED)

#: Of each kind of device what the versions in ``TRIED`` allow. Those by vhost-user hold for our device processes: QEMU
#: asks the process behind the device for what saving needs (DEVICE_STATE, LOG_ALL and LOG_SHMFD).
ABILITIES: dict[str, tuple[Ability, Ability]] = {
    "vhost-user-fs": (_NOTHING, _ALL),
    "vhost-user-blk": (_ALL, _ALL),
    "vhost-user-rng": (_NOTHING, _NOTHING),
    "vhost-user-vsock": (_NOTHING, _NOTHING),
    # Behind it is our front, by vhost-user.
    "virtio-net": (_ALL, _ALL),
    "virtio-serial": (_ALL, _ALL),
    "virtio-balloon": (_ALL, _ALL),
    "virtio-blk": (_ALL, _ALL),
    "virtio-rng": (_ALL, _ALL),
    "virtio-9p": (
        Ability("", "Migration is disabled when VirtFS export path"),
        Ability("", "Migration is disabled when VirtFS export path"),
    ),
}

#: A port is saved with the device it belongs to.
_PARTS = ("virtserialport",)
_TRANSPORTS = ("-device", "-pci")


def ability(kind: str, version: tuple[int, int]) -> Ability:
    """Return what a QEMU allows a kind of device; for a kind that nobody has tried that it allows nothing."""
    row = ABILITIES.get(kind)
    if row is None:
        return Ability("nobody has tried it", "nobody has tried it")
    return row[max(sum(tried <= version for tried in TRIED) - 1, 0)]


def why_not_saveable(argv: tuple[bytes, ...], version: tuple[int, int]) -> str:
    """Return why a machine with these arguments of QEMU's cannot be saved while it runs; empty if it can."""
    for kind in device_kinds(argv):
        reason = ability(kind, version).saved
        if reason:
            return f"{kind} with QEMU {version[0]}.{version[1]}: {reason}"
    return ""


def device_kinds(argv: tuple[bytes, ...]) -> Iterator[str]:
    """Return the kind of every device in QEMU's arguments, without what names its transport."""
    for word, value in pairwise(argv):
        if word != b"-device":
            continue
        kind = value.decode("utf-8", "replace").partition(",")[0]
        for suffix in _TRANSPORTS:
            kind = kind.removesuffix(suffix)
        if kind not in _PARTS:
            yield kind
