"""``cloche cp`` (layer 6): files and trees between host and guest."""

from __future__ import annotations

import os

from cloche import log
from cloche.api.copying import stream_in, stream_out
from cloche.api.domain import Domain
from cloche.errors import UsageError
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.parser import Parsed


def main(parsed: Parsed) -> int:
    """Copy; what of a guest's files was left out is told, and makes the status 1."""
    if len(parsed.operands) != 2:
        raise UsageError(
            "`cloche cp` takes a source and a target",
            hint="Write: cloche cp DOMAIN:/PATH DIR, or the other way.",
        )
    (source_domain, source), (target_domain, target) = (_take_apart(word) for word in parsed.operands)
    if (source_domain is None) == (target_domain is None):
        raise UsageError(
            "`cloche cp` copies between the host and a domain: one of the two names a domain",
            hint="Write DOMAIN:/PATH for that one; a file of the host with a colon in its name is ./FILE.",
        )
    if source_domain is not None:
        domain = Domain.find(source_domain)
        if target == "-":
            stream_out(domain, os.fsencode(source), 1)
            return 0
        told = domain.copy_out(source, target)
        for line in told:
            log.notice(line)
        return 1 if told else 0
    assert target_domain is not None
    domain = Domain.find(target_domain)
    if source == "-":
        stream_in(domain, os.fsencode(target), 0)
    else:
        domain.copy_in(source, target)
    return 0


def _take_apart(word: str) -> tuple[str | None, str]:
    """Return domain and path of ``DOMAIN:PATH``; a word whose first colon comes after a slash is the host's."""
    domain, colon, path = word.partition(":")
    if not colon or "/" in domain or not domain:
        return None, word
    return domain, path
