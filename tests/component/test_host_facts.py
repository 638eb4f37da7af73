"""Facts that are read from directories."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cloche.host.facts import read_skeleton
from cloche.model.facts import SkeletonEntry

if TYPE_CHECKING:
    from pathlib import Path


def test_skeleton_is_read_with_directories_first(tmp_path: Path) -> None:
    """Files, links and directories are told with mode and content; what is neither is left out."""
    (tmp_path / "bin").mkdir(mode=0o750)
    (tmp_path / "bin" / "tool").write_bytes(b"#!/bin/sh\n\xff")
    (tmp_path / "bin" / "tool").chmod(0o755)
    (tmp_path / ".link").symlink_to("no/where")
    os.mkfifo(tmp_path / "pipe")
    assert read_skeleton(str(tmp_path)) == (
        SkeletonEntry(b".link", "link", 0, b"no/where"),
        SkeletonEntry(b"bin", "dir", 0o750),
        SkeletonEntry(b"bin/tool", "file", 0o755, b"#!/bin/sh\n\xff"),
    )


def test_missing_skeleton_is_empty(tmp_path: Path) -> None:
    """Without a skeleton a home begins empty."""
    assert read_skeleton(str(tmp_path / "no")) == ()


def test_large_skeleton_is_not_sent(tmp_path: Path) -> None:
    """Too many bytes or too many entries are not read into a plan."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "large").write_bytes(bytes(70_000))
    assert read_skeleton(str(tmp_path / "a")) is None
    (tmp_path / "b").mkdir()
    for number in range(65):
        (tmp_path / "b" / str(number)).touch()
    assert read_skeleton(str(tmp_path / "b")) is None
