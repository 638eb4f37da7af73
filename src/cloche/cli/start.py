"""The first part of ``cloche run`` (layer 6): the warden comes up while the rest is still imported."""

from __future__ import annotations

import os

from cloche.cli.profile_choice import choose_profile
from cloche.cli.terminal import Terminal, choose_terminal
from cloche.errors import UsageError
from cloche.host import xdg
from cloche.host.pool import is_set
from cloche.host.profile_place import has_settings
from cloche.host.tools import require_own_binary
from cloche.host.warden import Warden
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.parser import Parsed


def main(parsed: Parsed) -> int:
    """Run a program and return its status."""
    if xdg.has_settings() or has_settings(choose_profile(parsed)):
        from cloche.cli.settled import run_with_settings

        return run_with_settings(parsed, _run)
    return _run(parsed)


def _run(parsed: Parsed) -> int:
    if not parsed.operands:
        raise _no_program(str(parsed.get("profile") or ""))
    if parsed.get("dry_run"):
        from cloche.cli.run import show_plan

        return show_plan(parsed)
    if parsed.get("detach"):
        from cloche.cli.detach import main as detach

        return detach(parsed)
    # The mask is the program's. What cloche itself makes is private and usable, even where the caller's forbids all.
    mask = os.umask(0o077)
    wants_tty, keys = choose_terminal(parsed.get("tty"))  # type: ignore[arg-type]
    request = hold = None
    wants_refill = False
    profile = choose_profile(parsed)
    if profile:
        from cloche.cli.profiled import begin

        request, hold, status = begin(parsed, profile, Terminal(wants_tty, keys))
        if status is not None:
            return status
    elif is_set():
        from cloche.cli import pooled
        from cloche.domain.request import build_request

        request = build_request(parsed.values, parsed.operands)
        status = pooled.run(parsed, request, mask, Terminal(wants_tty, keys))
        if status is not None:
            return status
        wants_refill = pooled.is_missing(parsed, request)
    # It needs no plan. A keeper only where there is a mode to restore.
    warden = Warden.start(require_own_binary("cloche-warden"), keeper=wants_tty and os.isatty(keys))
    try:
        from cloche.cli.run import prepare_run

        run = prepare_run(parsed, mask, warden, Terminal(wants_tty, keys, warden.keeper), request, hold=hold)
    except BaseException:
        warden.close()
        if hold is not None:
            hold.release(is_clean=hold.is_clean)
        raise
    run.wants_refill = wants_refill
    return run.run()


def _no_program(profile: str) -> UsageError:
    if not profile:
        return UsageError("no program was named", hint="For example: cloche run -- uname -a")
    from cloche.host.profiles import directory

    directory(profile)
    return UsageError(
        f"no program was named, and the profile {profile} names none",
        hint=f"`cloche profile edit {profile}` gives it a `command`.",
    )
