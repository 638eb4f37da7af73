"""``cloche disk add`` (layer 6): one disk more for a running domain."""

from __future__ import annotations

import sys

from cloche.domain.control.disks import add_disk
from cloche.domain.find import find_domain
from cloche.errors import UsageError
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.parser import Parsed


def add(parsed: Parsed) -> int:
    """Give a running domain disks, one after the other; the first that it cannot have ends it."""
    if len(parsed.operands) < 2:
        raise UsageError(
            "`cloche disk add` needs a domain and a disk",
            hint=f"Write: cloche disk add {parsed.verb.operands}",
        )
    domain = find_domain(parsed.operands[0]).ident
    for word in parsed.operands[1:]:
        sys.stdout.write(f"{add_disk(domain, word)}\n")
        # The next one may fail, and this one is there.
        sys.stdout.flush()
    return 0
