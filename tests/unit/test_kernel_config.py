"""The guest kernel's configuration and patches as texts; whether they build is for the build to say."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

OPTION = re.compile(r"(?:# )?(CONFIG_[A-Z0-9_a-z]+)(?:=(?:y|\d+|\"[^\"]*\")| is not set)")


@pytest.fixture
def lines(project: Path) -> list[str]:
    """Return the lines of the fragment."""
    return (project / "guest" / "kernel.config").read_text().splitlines()


def is_option(line: str) -> bool:
    """Tell options from comments."""
    return line.startswith(("CONFIG_", "# CONFIG_"))


def test_every_line_is_an_option_or_a_comment(lines: list[str]) -> None:
    """Kconfig passes over what it does not understand; nothing of that kind is in the file."""
    assert [line for line in lines if is_option(line) and not OPTION.fullmatch(line)] == []
    assert [line for line in lines if line and not is_option(line) and not line.startswith("#")] == []


def test_every_option_is_named_once(lines: list[str]) -> None:
    """Of two lines about one option the first would silently lose."""
    names = [match[1] for line in lines if (match := OPTION.fullmatch(line))]
    assert len(names) == len(set(names))


def test_every_group_says_what_it_is_for(lines: list[str]) -> None:
    """A blank line ends a group, and each begins with its heading."""
    groups = "\n".join(lines).split("\n\n")
    assert len(groups) > 8
    assert [group for group in groups[1:] if not group.startswith("# --- ")] == []


@pytest.mark.parametrize("name", ["MODULES", "ACPI", "PCI", "VT", "LEGACY_PTYS", "EFI", "SWAP", "DEBUG_INFO"])
def test_what_a_guest_must_not_have_is_nowhere_switched_on(lines: list[str], name: str) -> None:
    """Without modules, buses to search and swapping into a file of the host."""
    assert f"CONFIG_{name}=y" not in lines


def test_every_patch_says_why_and_under_which_licence(project: Path) -> None:
    """What is changed in Linux is explained before it is shown."""
    patches = sorted((project / "guest" / "patches").glob("*.patch"))
    assert [patch.name[:4] for patch in patches] == [f"{number:04d}" for number in range(1, len(patches) + 1)]
    for patch in patches:
        head, separator, _ = patch.read_text().partition("--- a/")
        assert separator
        assert "GPL-2.0" in head
        assert len(head.splitlines()) > 4
