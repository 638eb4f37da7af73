"""A package that comes, is changed or goes is noticed, both ways, and nothing else is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from cloche.host.tree_print import fingerprint, has_changed

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Provide a system with one package, as dpkg leaves it."""
    for name in ("usr/bin", "usr/share/doc", "var/lib/dpkg"):
        (tmp_path / name).mkdir(parents=True)
    swap(tmp_path, "1.0")
    return tmp_path


def swap(root: Path, version: str | None) -> None:
    """Put a version of the package there as dpkg does, or take it away."""
    program, status = root / "usr/bin/program", root / "var/lib/dpkg/status"
    if version is None:
        program.unlink()
    else:
        fresh = program.with_suffix(".dpkg-new")
        fresh.write_text(version)
        fresh.rename(program)
    fresh = status.with_suffix(".new")
    fresh.write_text(f"Package: program\nVersion: {version}\n")
    fresh.rename(status)


def test_a_package_is_swapped_both_ways(root: Path, tmp_path: Path) -> None:
    """Upgraded, downgraded, removed, installed: each is told once, at the start after it."""
    profile = tmp_path / "profile"
    profile.mkdir()
    assert not has_changed(str(profile), fingerprint(str(root)))  # the first start has no before
    assert not has_changed(str(profile), fingerprint(str(root)))
    for version in ("2.0", "1.0", None, "1.0"):
        swap(root, version)
        assert has_changed(str(profile), fingerprint(str(root)))
        assert not has_changed(str(profile), fingerprint(str(root)))
    # A file that is only read, and what is no program's.
    (root / "usr/bin/program").read_text()
    (root / "tmp").mkdir()
    assert not has_changed(str(profile), fingerprint(str(root)))
    assert sorted(os.listdir(profile)) == ["outdated", "tree"]  # until a start ends well
