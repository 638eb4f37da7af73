"""``cloche profile new|list|delete|rename|clone|lock|unlock`` (layer 6): which profiles there are."""

from __future__ import annotations

import os
import sys

from cloche.cli.listing import print_json
from cloche.domain import profile_verbs
from cloche.domain.profile_verbs import look
from cloche.errors import SettingsError, UsageError
from cloche.host import profiles
from cloche.host.profile_place import has_settings, settings_path
from cloche.host.text import escape_untrusted, format_size
from cloche.model.options import Level
from cloche.model.profile import CEILING_BYTES
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.parser import Parsed


def new(parsed: Parsed) -> int:
    """Make a profile."""
    name = one_name(parsed)
    size_mib = parsed.get("size")
    profiles.new(name, CEILING_BYTES if size_mib is None else int(str(size_mib)) << 20)
    return 0


def list_(parsed: Parsed) -> int:
    """List all profiles."""
    entries = [look(name) for name in profiles.names()]
    marks = {entry.name: _marks(entry.name) for entry in entries}
    if parsed.get("json"):
        print_json([entry._asdict() | marks[entry.name] for entry in entries])
        return 0
    width = max((len(entry.name) for entry in entries), default=0)
    for entry in entries:
        used = f"{format_size(entry.used_bytes)} of {format_size(entry.size_bytes)}"
        state = f"{entry.state} {entry.domain}".strip()
        line = f"{entry.name:<{width}}  {used:<24}  {state:<20}  {marks[entry.name]['label']}"
        sys.stdout.write(f"{line.rstrip()}\n")
    return 0


def _marks(name: str) -> dict[str, str]:
    """Return what its owner calls a profile beside its name, and its colour; nothing where its settings are wrong."""
    values: dict[str, object] = {}
    if has_settings(name):
        from cloche.domain.settings import load, settle
        from cloche.host.settings_files import open_one
        from cloche.model.settings import all_keys

        keys = all_keys()
        try:
            own = open_one(Level.PROFILE, settings_path(name))
            values = settle(load([own], keys), keys, {}).values if own is not None else {}
        except SettingsError:
            pass  # whoever starts it is told; a list is for looking
    return {key: escape_untrusted(str(values.get(key, "")).encode(), 60) for key in ("label", "colour")}


def describe(name: str) -> str:
    """Return what there is to say of a profile beside its settings, in lines.

    Raises:
        UsageError, ProfileError: There is none.
    """
    entry = look(name)
    rows = (
        ("state", f"{entry.state} {entry.domain}".strip()),
        ("used", format_size(entry.used_bytes)),
        ("may use", format_size(entry.size_bytes)),
        ("directory", profiles.directory(name)),
    )
    return "".join(f"{word:<10} {value}\n" for word, value in rows)


def delete(parsed: Parsed) -> int:
    """Delete profiles, one after the other; the first that cannot be deleted ends it."""
    if not parsed.operands:
        raise UsageError("no profile was named", hint="`cloche profile list` lists them.")
    for name in parsed.operands:
        profile_verbs.delete(name)
    return 0


def rename(parsed: Parsed) -> int:
    """Call a profile something else."""
    profile_verbs.rename(*_two_names(parsed))
    return 0


def clone(parsed: Parsed) -> int:
    """Make a copy of a profile."""
    from cloche.api.profile import Profile

    name, wanted = _two_names(parsed)
    shown = os.isatty(2)

    def progress(done: int, whole: int) -> None:
        os.write(2, f"\rcloche: {format_size(done)} of {format_size(whole)} copied ".encode())

    Profile(name).clone(wanted, progress if shown else None)
    return 0


def lock(parsed: Parsed) -> int:
    """Keep a profile from being started and changed."""
    profile_verbs.lock(one_name(parsed))
    return 0


def unlock(parsed: Parsed) -> int:
    """Let it be used again."""
    profile_verbs.unlock(one_name(parsed))
    return 0


def _two_names(parsed: Parsed) -> tuple[str, str]:
    if len(parsed.operands) != 2:
        verb = " ".join(("cloche", *parsed.path))
        raise UsageError(f"`{verb}` takes two names", hint=f"Write: {verb} NAME NEW-NAME")
    return parsed.operands[0], parsed.operands[1]


def one_name(parsed: Parsed) -> str:
    """Return the one name that was given.

    Raises:
        UsageError: None was, or more.
    """
    if len(parsed.operands) != 1:
        verb = " ".join(("cloche", *parsed.path))
        raise UsageError(f"`{verb}` takes one name", hint=f"Write: {verb} NAME")
    return parsed.operands[0]
