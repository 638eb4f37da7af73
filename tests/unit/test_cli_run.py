"""What ``cloche run`` shows of a guest's console."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloche import log
from cloche.cli.run import _ConsolePrinter

if TYPE_CHECKING:
    import pytest


def test_the_last_line_of_the_console_may_have_no_end(request: pytest.FixtureRequest) -> None:
    """A guest that stops in the middle of a line is heard to its last byte, once."""
    shown: list[str] = []
    log.set_sink("notice", shown.append)
    request.addfinalizer(lambda: log.set_sink("notice", None))
    console = _ConsolePrinter()
    console.feed(b"whole\r\nha")
    console.feed(b"lf \x1b[31m")
    assert shown == ["boot: whole"]
    console.finish()
    console.finish()
    assert shown == ["boot: whole", "boot: half \\x1b[31m"]
