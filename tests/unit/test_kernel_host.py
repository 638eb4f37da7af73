"""When the host's own kernel counts as one a guest can have."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cloche.kernel.store import host_kernel

if TYPE_CHECKING:
    from pathlib import Path

RELEASE = os.uname().release


def make_host(root: Path) -> tuple[str, str]:
    """Make directories as /boot and /lib/modules of a host would be."""
    (root / "boot").mkdir()
    (root / "boot" / f"vmlinuz-{RELEASE}").write_bytes(b"image")
    (root / "modules" / RELEASE / "kernel").mkdir(parents=True)
    return str(root / "boot"), str(root / "modules")


def test_host_kernel_needs_its_image_and_its_modules(tmp_path: Path) -> None:
    """Image and modules make a kernel that runs on q35 and has no template."""
    boot, modules = make_host(tmp_path)
    kernel = host_kernel(boot, modules)
    assert kernel is not None
    assert (kernel.id, kernel.machines[0]) == (f"host-{RELEASE}", "q35")
    assert "microvm" not in kernel.machines
    assert kernel.size_bytes == 5
    assert host_kernel(boot, str(tmp_path)) is None
    assert host_kernel(str(tmp_path), modules) is None
