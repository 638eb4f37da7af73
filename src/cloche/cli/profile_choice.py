"""Which profile a run has (layer 6): the named one, that of the program's name, the default one, or none."""

from __future__ import annotations

import os

from cloche.errors import UsageError
from cloche.host.profile_place import exists
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.parser import Parsed


def choose_profile(parsed: Parsed) -> str:
    """Return the name of the profile that keeps what the run changes; empty for none.

    Raises:
        UsageError: -p and -t were given together, or -p with an empty name.
    """
    named = parsed.get("profile")
    if named == "":
        # Of `-p "$NAME"` where NAME is nothing: a run without a profile would lose what it changes.
        raise UsageError("'' cannot be a profile's name", hint="Leave out --profile, or name one.")
    # A file's word is weaker than a name on the command line.
    if parsed.get("temporary") and not (
        named and parsed.settings and "temporary" not in parsed.settings.given
    ):
        if named:
            raise UsageError(
                "--profile keeps what is changed and --temporary leaves nothing", hint="Give one of them."
            )
        return ""
    if named:
        return str(named)
    program = os.path.basename(parsed.operands[0]) if parsed.operands else ""
    return program if exists(program) else str(parsed.get("default_profile") or "")
