"""The command line of a run with files of settings below it (layer 6). Without files it is what it was."""

from __future__ import annotations

from cloche.host.settings_files import open_settings
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.parser import Parsed


def with_settings(parsed: Parsed) -> Parsed:
    """Return the command line with what files say, where it says nothing itself.

    Raises:
        SettingsError: A file cannot be read or trusted, or is wrong.
    """
    opened = open_settings()
    if not opened:
        return parsed
    from cloche.domain.settings import load, settle
    from cloche.model.settings import all_keys

    keys = all_keys()
    settled = settle(load(opened, keys), keys, parsed.values, parsed.get("reset", ()))  # type: ignore[arg-type]
    return parsed._replace(values=settled.values, settings=settled)
