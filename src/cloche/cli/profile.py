"""``cloche profile new|list|delete`` (layer 6): which profiles there are."""

from __future__ import annotations

import json
import os
import sys

from cloche.errors import UsageError
from cloche.host import profiles
from cloche.host.profile_lock import SEALED, Hold, is_held, read_note, this_host
from cloche.host.profile_place import IMAGE
from cloche.host.text import format_size
from cloche.model.profile import CEILING_BYTES, Entry
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.parser import Parsed

_BLOCK = 512


def new(parsed: Parsed) -> int:
    """Make a profile."""
    name = one_name(parsed)
    size_mib = parsed.get("size")
    profiles.new(name, CEILING_BYTES if size_mib is None else int(str(size_mib)) << 20)
    return 0


def list_(parsed: Parsed) -> int:
    """List all profiles."""
    entries = [look(name) for name in profiles.names()]
    if parsed.get("json"):
        json.dump([entry._asdict() for entry in entries], sys.stdout, indent=2)
        sys.stdout.write("\n")
        return 0
    width = max((len(entry.name) for entry in entries), default=0)
    for entry in entries:
        used = f"{format_size(entry.used_bytes)} of {format_size(entry.size_bytes)}"
        state = f"{entry.state} {entry.domain}".strip()
        sys.stdout.write(f"{entry.name:<{width}}  {used:<24}  {state}\n")
    return 0


def delete(parsed: Parsed) -> int:
    """Delete profiles, one after the other; the first that cannot be deleted ends it."""
    if not parsed.operands:
        raise UsageError("no profile was named", hint="`cloche profile list` lists them.")
    for name in parsed.operands:
        hold = Hold.take(name, sealed=False)
        try:
            profiles.delete(name)
        finally:
            hold.release()
    return 0


def one_name(parsed: Parsed) -> str:
    """Return the one name that was given.

    Raises:
        UsageError: None was, or more.
    """
    if len(parsed.operands) != 1:
        verb = " ".join(("cloche", *parsed.path))
        raise UsageError(f"`{verb}` takes one name", hint=f"Write: {verb} NAME")
    return parsed.operands[0]


def look(name: str) -> Entry:
    """Return what there is to say of a profile without looking into it.

    Raises:
        ProfileError: There is none.
    """
    directory = profiles.directory(name)
    status = os.stat(os.path.join(directory, IMAGE))
    note = read_note(name)
    state, domain = "ready", ""
    if is_held(name):
        state, domain = "running", note.domain if note else ""
    elif note is not None and note.host != this_host()[0]:
        state = "elsewhere"
    elif os.path.lexists(os.path.join(directory, SEALED)):
        state = "locked"
    return Entry(name, status.st_size, status.st_blocks * _BLOCK, state, domain)
