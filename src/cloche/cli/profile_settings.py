"""``cloche profile show|edit`` (layer 6): the settings of a profile, and what of other files counts beside them."""

from __future__ import annotations

import sys

from cloche.cli.profile import describe, one_name
from cloche.cli.settings import show_lines
from cloche.domain.settings import list_settings, load, settle
from cloche.host.profile_place import settings_path
from cloche.host.profiles import directory
from cloche.host.settings_files import open_one, open_settings
from cloche.model.options import Level
from cloche.model.settings import all_keys
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.parser import Parsed


def show(parsed: Parsed) -> int:
    """Handle ``cloche profile show``."""
    name = one_name(parsed)
    directory(name)
    if not parsed.get("json"):
        # Listed as JSON it is `cloche profile list` that says it.
        sys.stdout.write(describe(name) + "\n")
    keys = all_keys()
    own = open_one(Level.PROFILE, settings_path(name))
    files = load([*open_settings(), *([own] if own else [])], keys)
    show_lines(list_settings(settle(files, keys, {}), keys), parsed)
    return 0


def edit(parsed: Parsed) -> int:
    """Handle ``cloche profile edit``."""
    from cloche.cli.edit import edit as edit_file

    name = one_name(parsed)
    directory(name)
    return edit_file(Level.PROFILE, settings_path(name))
