"""The drivers there are (layer 4)."""

from __future__ import annotations

from cloche.errors import UsageError
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.drivers.contract import Driver

DRIVER_NAMES = ("qemu", "bwrap")


def find_driver(name: str) -> Driver:
    """Return the driver called ``name``; only that one's module is imported.

    Raises:
        UsageError: There is none of that name.
    """
    if name == "qemu":
        from cloche.drivers.qemu import QemuDriver

        return QemuDriver()
    if name == "bwrap":
        from cloche.drivers.bwrap import BwrapDriver

        return BwrapDriver()
    raise UsageError(f"there is no driver {name!r}", hint=f"There are {' and '.join(DRIVER_NAMES)}.")
