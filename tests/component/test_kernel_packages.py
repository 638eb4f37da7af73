"""Packages and archives that other programs can read."""

from __future__ import annotations

import io
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from cloche.errors import KernelError
from cloche.kernel.initramfs import pack_initramfs
from cloche.kernel.packages import unpack_package

if TYPE_CHECKING:
    from pathlib import Path


def make_package(directory: Path) -> str:
    """Build a package with one file and a script that must never run."""
    (directory / "pkg" / "DEBIAN").mkdir(parents=True)
    (directory / "pkg" / "DEBIAN" / "control").write_text(
        "Package: test\nVersion: 1\nArchitecture: all\nMaintainer: nobody <n@example.org>\nDescription: test\n"
    )
    script = directory / "pkg" / "DEBIAN" / "preinst"
    script.write_text(f"#!/bin/sh\ntouch {directory}/ran\n")
    script.chmod(0o755)
    (directory / "pkg" / "boot").mkdir()
    (directory / "pkg" / "boot" / "vmlinuz-1").write_bytes(b"kernel")
    subprocess.run(["dpkg-deb", "-b", "pkg", "test.deb"], cwd=directory, check=True, capture_output=True)
    return str(directory / "test.deb")


def test_package_is_unpacked_and_not_installed(tmp_path: Path) -> None:
    """Its files are there, and none of its scripts has run."""
    unpack_package(make_package(tmp_path), str(tmp_path / "out"))
    assert (tmp_path / "out" / "boot" / "vmlinuz-1").read_bytes() == b"kernel"
    assert not (tmp_path / "ran").exists()


def test_damaged_package_is_one_sentence(tmp_path: Path) -> None:
    """The tool's own words are in the hint."""
    (tmp_path / "bad.deb").write_bytes(b"no package")
    with pytest.raises(KernelError, match="dpkg-deb failed") as caught:
        unpack_package(str(tmp_path / "bad.deb"), str(tmp_path / "out"))
    assert any("bad.deb" in line for line in caught.value.detail)


def test_initramfs_is_what_cpio_calls_an_archive() -> None:
    """Another program reads names, types, owners and device numbers as they were meant."""
    archive = pack_initramfs(b"agent", [("virtio.ko", b"module")])
    listing = subprocess.run(
        ["cpio", "-itvn", "--quiet"],
        input=archive,
        capture_output=True,
        check=True,
        env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
    ).stdout.decode()
    lines = {line.split()[-1]: line.split() for line in io.StringIO(listing)}
    assert lines["init"][0] == "-rwxr-xr-x"
    assert lines["dev/console"][:6] == ["crw-------", "1", "0", "0", "5,", "1"]
    assert lines["lib/000-virtio.ko"][4] == "6"
    assert list(lines)[-1] == "modules"
