"""``cloche profile diff|reset|resize`` (layer 6): what only a guest can do, for only guests look into a disk."""

from __future__ import annotations

import os
import sys

from cloche.api.profile import Profile
from cloche.cli.listing import print_json
from cloche.cli.profile import one_name
from cloche.errors import UsageError
from cloche.host.text import escape_untrusted, format_size
from cloche.model.options import parse_size_mib
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.parser import Parsed


def diff(parsed: Parsed) -> int:
    """List what a profile has that the host has not, or not so."""
    name, path = _name_and(parsed, "[PATH]", "/")
    changes = Profile(name).diff(path)
    if parsed.get("json"):
        rows = [{**change._asdict(), "path": os.fsdecode(change.path)} for change in changes]
        print_json(rows)
        return 0
    for change in changes:
        sizes = "" if change.kind == "deleted" else format_size(change.size)
        sys.stdout.write(f"{change.kind:<8} {sizes:>9}  {escape_untrusted(change.path, 4096)}\n")
    return 0


def reset(parsed: Parsed) -> int:
    """Take changes back."""
    name, path = _name_and(parsed, "[PATH]", "")
    Profile(name).reset(path or None)
    return 0


def resize(parsed: Parsed) -> int:
    """Let the disk of a profile become larger."""
    name, size = _name_and(parsed, "SIZE", "")
    if not size:
        raise UsageError("no size was given", hint=f"Write for example: cloche profile resize {name} 40G")
    Profile(name).resize(parse_size_mib(size) << 20)
    return 0


def _name_and(parsed: Parsed, what: str, default: str) -> tuple[str, str]:
    if len(parsed.operands) == 2:
        return parsed.operands[0], parsed.operands[1]
    if len(parsed.operands) > 2:
        raise UsageError(
            f"`{' '.join(('cloche', *parsed.path))}` takes a name and one word more",
            hint=f"Write: {' '.join(('cloche', *parsed.path))} NAME {what}",
        )
    return one_name(parsed), default
