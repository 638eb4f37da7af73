"""``cloche disk add`` and ``cloche net add`` (layer 6): one device more for a running domain."""

from __future__ import annotations

import sys

from cloche.domain.control.devices import add_disk, add_network
from cloche.domain.find import find_domain
from cloche.errors import UsageError
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.parser import Parsed


def disk(parsed: Parsed) -> int:
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


def network(parsed: Parsed) -> int:
    """Give a running domain a network card, and print what the guest calls it."""
    if len(parsed.operands) != 2:
        raise UsageError(
            "`cloche net add` needs a domain and a network",
            hint=f"Write: cloche net add {parsed.verb.operands}",
        )
    name, word = parsed.operands
    sys.stdout.write(f"{add_network(find_domain(name).ident, word)}\n")
    return 0
