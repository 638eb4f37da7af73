"""The frequency of the host's time-stamp counter (layer 3a), measured once for each boot of the host."""

from __future__ import annotations

import os

from cloche import log
from cloche.errors import ClocheError
from cloche.host import xdg

_FILE = "tsc-khz"
#: Counters of processors that have existed, in kHz; anything else is a mistake.
_PLAUSIBLE_KHZ = range(400_000, 10_000_000)


def tsc_khz(warden: str, *, remember: bool = True) -> int:
    """Return the counter's frequency in kHz, or 0 where the counter is not steady or could not be measured.

    Measuring takes 50 ms, so the result is kept in the cache (if ``remember``) until the host boots again.
    """
    with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
        boot = file.read().strip()
    try:
        path = os.path.join(xdg.cache_dir(), _FILE)
        with open(path, encoding="utf-8") as file:
            known, _, value = file.read().partition(" ")
        if known == boot and value.strip().isdigit():
            return int(value)
    except (OSError, UnicodeDecodeError):
        pass  # nothing known yet for this boot: measure
    khz = _measure(warden) if _is_steady() else 0
    if remember:
        _remember(f"{boot} {khz}\n")
    return khz


def _is_steady() -> bool:
    """Tell whether the counter runs at one speed, whatever the processor does."""
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        flags = next((line.split() for line in file if line.startswith("flags")), [])
    return "constant_tsc" in flags and "nonstop_tsc" in flags


def _measure(warden: str) -> int:
    from cloche.host.process import run

    try:
        text = run((warden, "--tsc-khz"), timeout=10).stdout.decode("ascii", "replace").strip()
    except ClocheError as error:
        log.debug(f"cannot measure the time-stamp counter: {error.message}")
        return 0
    return int(text) if text.isdigit() and int(text) in _PLAUSIBLE_KHZ else 0


def _remember(text: str) -> None:
    try:
        directory = xdg.ensure_directory(xdg.cache_dir())
        temporary = os.path.join(directory, f"{_FILE}.{os.getpid()}")
        with open(temporary, "w", encoding="ascii") as file:
            file.write(text)
        os.replace(temporary, os.path.join(directory, _FILE))
    except (OSError, ClocheError) as error:
        log.debug(f"cannot keep the counter's frequency: {error}")
