"""What every error of cloche's own looks like to a user."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess


def check_error(done: subprocess.CompletedProcess[bytes], status: int, *words: str) -> str:
    """Hold that a run ended with ``status`` and one sentence, with a hint and ``words`` in it; return what it said."""
    text = done.stderr.decode()
    lines = text.splitlines()
    assert done.returncode == status, text
    assert lines, "it said nothing"
    assert lines[0].startswith("cloche: "), text
    assert len(lines[0]) < 250, text
    assert [line for line in lines if line.startswith("cloche: ")] == lines[:1], text
    assert lines[-1].startswith("hint: "), text
    # Between the two stands at most what others said, set apart.
    assert all(line.startswith("  ") for line in lines[1:-1]), text
    assert "Traceback" not in text
    assert all(char.isprintable() or char == "\n" for char in text), repr(text)
    for word in words:
        assert word in text, text
    return text
