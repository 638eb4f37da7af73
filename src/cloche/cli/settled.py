"""The command line of a run with files of settings below it (layer 6); imported where there may be one."""

from __future__ import annotations

from cloche.domain.settings import load, settle
from cloche.host.settings_files import open_settings
from cloche.model.settings import all_keys
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.parser import Parsed


def with_settings(parsed: Parsed) -> Parsed:
    """Return the command line with what files say, where it says nothing itself.

    Raises:
        SettingsError: A file cannot be read or trusted, or is wrong.
    """
    keys = all_keys()
    settled = settle(load(open_settings(), keys), keys, parsed.values, parsed.get("reset", ()))  # type: ignore[arg-type]
    return parsed._replace(values=settled.values, settings=settled)
