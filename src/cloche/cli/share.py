"""``cloche share add|remove|list`` (layer 6): the shares of a running domain."""

from __future__ import annotations

import os
import sys

from cloche.cli.listing import print_json
from cloche.domain.control.shares import add_share, list_shares, remove_share
from cloche.domain.find import find_domain
from cloche.errors import UsageError
from cloche.host.text import escape_untrusted
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.parser import Parsed

_LONGEST_PATH = 4096


def add(parsed: Parsed) -> int:
    """Share directories with a running domain, one after the other; the first that cannot be ends it."""
    domain, words = _operands(parsed)
    for word in words:
        place = add_share(domain, word)
        sys.stdout.write(f"{_shown(place)}\n")
        # The next one may fail, and this one is shared.
        sys.stdout.flush()
    return 0


def remove(parsed: Parsed) -> int:
    """Take shared directories away, one after the other; the first that cannot be ends it."""
    domain, places = _operands(parsed)
    for place in places:
        remove_share(domain, place, force=bool(parsed.get("force")))
    return 0


def list_(parsed: Parsed) -> int:
    """List what is shared."""
    if len(parsed.operands) > 1:
        raise UsageError("`cloche share list` looks at one domain at a time", hint="Name one of them.")
    shares = list_shares(find_domain(parsed.operands[0] if parsed.operands else None).ident)
    if parsed.get("json"):
        rows = [
            {
                "guest": _shown(one.target),
                "host": _shown(one.source),
                "writable": one.writable,
                "added": one.added,
            }
            for one in shares
        ]
        print_json(rows)
        return 0
    table = [("GUEST", "HOST", "MODE", "SHARED")]
    for one in shares:
        since = "added" if one.added else "at the start"
        table.append((_shown(one.target), _shown(one.source), "rw" if one.writable else "ro", since))
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    for row in table:
        line = "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True))
        sys.stdout.write(f"{line.rstrip()}\n")
    return 0


def _operands(parsed: Parsed) -> tuple[str, tuple[str, ...]]:
    if len(parsed.operands) < 2:
        verb = " ".join(parsed.path)
        raise UsageError(
            f"`cloche {verb}` needs a domain and a directory",
            hint=f"Write: cloche {verb} {parsed.verb.operands}",
        )
    return find_domain(parsed.operands[0]).ident, parsed.operands[1:]


def _shown(path: str) -> str:
    """Make the name of a file safe to show: it may hold a line end, or an escape sequence."""
    return escape_untrusted(os.fsencode(path), _LONGEST_PATH)
