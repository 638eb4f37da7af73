"""How listings are printed (layer 6): JSON for programs, lines for people."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cloche.cli.parser import Parsed

    Row = dict[str, Any]


def print_json(value: object) -> None:
    """Print what ``--json`` asks for."""
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")


def print_rows(parsed: Parsed, rows: Sequence[Row], in_words: Callable[[Row], str], none: str) -> None:
    """Print rows as JSON if that is asked for, else a line for each; or that there is ``none``, and what makes one."""
    if parsed.get("json"):
        print_json(rows)
    else:
        for line in map(in_words, rows):
            sys.stdout.write(f"{line}\n")
        if not rows:
            sys.stdout.write(f"{none}\n")


def may_color() -> bool:
    """Tell whether what is printed may have colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def red(line: str, *, color: bool) -> str:
    """Return a line in red, if it may have a colour."""
    return f"\033[31m{line}\033[0m" if color else line


def day_and_time(seconds: float) -> str:
    """Return a time since the epoch in words, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
