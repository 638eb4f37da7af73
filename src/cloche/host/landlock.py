"""What the kernel's Landlock can limit (layer 3a). Device processes put it on themselves (crates/device)."""

from __future__ import annotations

_CREATE_RULESET, _ASK_VERSION = 444, 1
#: What a device gives up, and since which version the kernel can do that.
LANDLOCK_LIMITS = (
    (1, "files"),
    (4, "TCP"),
    (6, "abstract Unix addresses and signals"),
)


def landlock_version() -> int:
    """Return the version of the kernel's Landlock, 0 when it has none or does not use it."""
    import ctypes

    # The number is the same on all architectures.
    version: int = ctypes.CDLL(None).syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION)
    return max(version, 0)
