"""Facts about the machine a measurement was made on: without them a figure means nothing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from bench.prepare import CLOCHE, ROOT, VIRTME_VERSION

if TYPE_CHECKING:
    from bench.prepare import Parts


def collect(parts: Parts) -> dict[str, str]:
    """Return the facts, by name, in the order in which they are shown."""
    computer = parts.computer
    accelerator = _value_after(computer.options, "-accel") if computer else "unknown"
    return {
        "CPU": f"{_cpu_model()}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') // (1 << 20)} MiB",
        "host kernel": platform.release(),
        "distribution": platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
        "accelerator": accelerator,
        "guest memory": f"{computer.memory_mib} MiB" if computer else "unknown",
        "guest kernel": Path(computer.kernel).parent.name if computer else "unknown",
        "guest kernel parameters": " ".join(computer.words) if computer else "unknown",
        "QEMU": _first_line("qemu-system-x86_64", "--version"),
        "bubblewrap": _first_line("bwrap", "--version"),
        "virtme-ng": VIRTME_VERSION if parts.vng else "none",
        "Debian kernel for virtme-ng": Path(parts.debian_kernel).name if parts.debian_kernel else "none",
        "cloud kernel": Path(parts.cloud_kernel).parent.name if parts.cloud_kernel else "none",
        "Python": platform.python_version(),
        "cloche": f"{_first_line(str(CLOCHE), '--version')} ({_commit()})",
        "user": "root" if os.geteuid() == 0 else "an ordinary user",
        "load before": load(),
    }


def load() -> str:
    """Return how many processes have wanted to run during the last minute, on average."""
    return f"{os.getloadavg()[0]:.2f}"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def _first_line(*argv: str) -> str:
    if shutil.which(argv[0]) is None:
        return "none"
    said = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False).stdout
    return said.splitlines()[0] if said else "unknown"


def _commit() -> str:
    return _first_line("git", "-C", str(ROOT), "describe", "--always", "--dirty")


def _value_after(words: tuple[str, ...], option: str) -> str:
    return words[words.index(option) + 1] if option in words[:-1] else "unknown"
