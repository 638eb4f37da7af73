"""The first part of ``cloche run`` (layer 6): the warden comes up while the rest is still imported."""

from __future__ import annotations

import os

from cloche.cli.terminal import Terminal, choose_terminal
from cloche.errors import UsageError
from cloche.host.tools import require_own_binary
from cloche.host.warden import Warden
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.parser import Parsed


def main(parsed: Parsed) -> int:
    """Run a program and return its status."""
    if not parsed.operands:
        raise UsageError("no program was named", hint="For example: cloche run -- uname -a")
    if parsed.get("dry_run"):
        from cloche.cli.run import show_plan

        return show_plan(parsed)
    if parsed.get("detach"):
        from cloche.cli.detach import main as detach

        return detach(parsed)
    # The mask is the program's. What cloche itself makes is private and usable, even where the caller's forbids all.
    mask = os.umask(0o077)
    wants_tty, keys = choose_terminal(parsed.get("tty"))  # type: ignore[arg-type]
    # It needs no plan. A keeper only where there is a mode to restore.
    warden = Warden.start(require_own_binary("cloche-warden"), keeper=wants_tty and os.isatty(keys))
    try:
        from cloche.cli.run import prepare_run

        run = prepare_run(parsed, mask, warden, Terminal(wants_tty, keys, warden.keeper))
    except BaseException:
        warden.close()
        raise
    return run.run()
