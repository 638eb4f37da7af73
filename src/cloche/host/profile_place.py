"""Where profiles are, for those who only ask whether there is one (layer 3a): one look, at every start."""

from __future__ import annotations

import os

from cloche.host import xdg

#: Below a profile: the marker of a revert under way (``host.reverting``).
REVERTING = ("undo", "reverting")
IMAGE = "disk.img"
#: Its being there says that the host's system was changed, and no start since has ended well.
OUTDATED = "outdated"


def home() -> str:
    """Return the directory of the profiles (not made here)."""
    return os.path.join(xdg.data_dir(), "profiles")


def exists(name: str) -> bool:
    """Tell whether there is a profile of that name; ``name`` may be any word."""
    return name[:1].isalnum() and "/" not in name and os.path.exists(os.path.join(home(), name, IMAGE))


def settings_path(name: str) -> str:
    """Return where the settings of a profile are, if it has any."""
    return os.path.join(home(), name, xdg.SETTINGS)


def has_settings(name: str) -> bool:
    """Tell whether a profile may have settings of its own; ``name`` may be any word, also none."""
    return bool(name) and os.path.lexists(settings_path(name))
