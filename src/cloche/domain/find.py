"""Finding a domain by its name, its identity or the beginning of that (layer 5)."""

from __future__ import annotations

import os

from cloche.errors import DomainError
from cloche.host.rundir import Running, find_running
from cloche.host.text import escape_untrusted
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloche.host.records import Kept


def find_domain(wanted: str | None) -> Running:
    """Return the running domain that is meant, or the only one there is.

    A name is meant before an identity, and a whole identity before the beginning of one.

    Raises:
        DomainError: There is none, or more than one.
    """
    running = find_running()
    if wanted is not None:
        chosen = _choose(wanted, [(one.name, one.ident) for one in running])
        if chosen is not None:
            return running[chosen]
        raise _unknown(wanted, "you have no running domain", running)
    if len(running) == 1:
        return running[0]
    if running:
        listed = ", ".join(one.name or one.ident for one in running)
        raise DomainError(f"{len(running)} domains are running", hint=f"Name one: {listed}.")
    raise DomainError("no domain of yours is running", hint="Start one, for example: cloche run -- sleep 60")


def find_any(wanted: str) -> tuple[str, Running | None, Kept | None]:
    """Return identity, run directory and record of a domain that runs, or of a detached one that has ended.

    One that runs is meant before one that has ended, and of the latter the newest.

    Raises:
        DomainError: There is none, or more than one.
    """
    running = find_running()
    chosen = _choose(wanted, [(one.name, one.ident) for one in running])
    from cloche.host import records

    if chosen is not None:
        found = running[chosen]
        return found.ident, found, records.read(found.ident)
    alive = {one.ident for one in running}
    ended = [kept for kept in reversed(records.read_all()) if kept.ident not in alive]
    chosen = _choose(wanted, [(kept.name, kept.ident) for kept in ended])
    if chosen is None:
        raise _unknown(
            wanted, "you have no domain", running, hint="`cloche ps -a` lists those that have ended, too."
        )
    return ended[chosen].ident, None, ended[chosen]


def _choose(wanted: str, domains: Sequence[tuple[str, str]]) -> int | None:
    """Return which of these, given by name and identity, is meant; None for none of them.

    Raises:
        DomainError: More than one may be.
    """
    for column in (0, 1):
        for index, names in enumerate(domains):
            if wanted and names[column] == wanted:
                return index
    begins = [index for index, (_, ident) in enumerate(domains) if wanted and ident.startswith(wanted)]
    if len(begins) > 1:
        text = escape_untrusted(os.fsencode(wanted), 80)
        hint = f"Say more of it: {', '.join(domains[index][1] for index in begins)}."
        raise DomainError(f"more than one of your running domains begins with {text}", hint=hint)
    return begins[0] if begins else None


def _unknown(wanted: str, said: str, running: Sequence[Running], hint: str = "") -> DomainError:
    text = escape_untrusted(os.fsencode(wanted), 80)
    listed = ", ".join(one.name or one.ident for one in running)
    return DomainError(
        f"{said} {text}", hint=hint or (f"Running: {listed}." if running else "None is running.")
    )
