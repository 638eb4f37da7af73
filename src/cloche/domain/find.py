"""Finding a running domain by its name (layer 5)."""

from __future__ import annotations

import os

from cloche.errors import DomainError
from cloche.host.rundir import Running, find_running
from cloche.host.text import escape_untrusted


def find_domain(wanted: str | None) -> Running:
    """Return the running domain of this name (or with a name that begins so), or the only one there is.

    Raises:
        DomainError: There is none, or more than one.
    """
    running = find_running()
    names = tuple(domain.ident for domain in running)
    if wanted is not None:
        chosen = [domain for domain in running if domain.ident == wanted]
        chosen = chosen or [domain for domain in running if wanted and domain.ident.startswith(wanted)]
        text = escape_untrusted(os.fsencode(wanted), 80)
        if len(chosen) == 1:
            return chosen[0]
        if chosen:
            hint = f"Say more of it: {', '.join(domain.ident for domain in chosen)}."
            raise DomainError(f"more than one of your running domains begins with {text}", hint=hint)
        hint = f"Running: {', '.join(names)}." if names else "None is running."
        raise DomainError(f"you have no running domain {text}", hint=hint)
    if len(running) == 1:
        return running[0]
    if running:
        raise DomainError(f"{len(running)} domains are running", hint=f"Name one: {', '.join(names)}.")
    raise DomainError("no domain of yours is running", hint="Start one, for example: cloche run -- sleep 60")
