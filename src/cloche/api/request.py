"""From the arguments of a ``Sandbox`` to a request (layer 5b), the way the command line takes."""

from __future__ import annotations

import os

from cloche.domain.request import build_request
from cloche.errors import UsageError
from cloche.model.options import Level
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cloche.api.programs import Word
    from cloche.host.settings_files import Opened
    from cloche.model.request import RunRequest

#: Settings that are about one run of the command line: its terminal, its output, its name, what it shows.
_OF_RUNS = frozenset(
    (
        "agent_log",
        "boot_log",
        "default_profile",
        "detach",
        "dry_run",
        "interactive",
        "log_size",
        "name",
        "pool",
        "shell_on_failure",
        "temporary",
        "timeout",
        "timings",
        "tty",
    )
)


def sandbox_request(said: Mapping[str, object], *, settings: bool) -> RunRequest:
    """Return the request for a sandbox.

    A profile that is named has its own file below what is said.

    Args:
        said: By the name of the command line's option, what the caller has said; None and nothing are left out.
        settings: Whether files of the system and of the user stand below that, as they do for the command line.

    Raises:
        UsageError, ShareError, DiskError, NetworkError, ProfileError: What was said makes no sense, or is not there.
        SettingsError: A file cannot be read or trusted, or is wrong.
    """
    given = {name: value for name, value in said.items() if value is not None and value != ()}
    if given.get("profile") == "":
        # A name that came out empty: a machine without the profile would lose what it changes.
        raise UsageError("'' cannot be a profile's name", hint="Leave out profile=, or name one.")
    opened = _open_files(str(given.get("profile", "")), settings=settings)
    if opened:
        from cloche.domain.settings import load, settle
        from cloche.model.settings import all_keys

        keys = all_keys()
        given = settle(load(opened, keys), keys, given).values
    return build_request({name: value for name, value in given.items() if name not in _OF_RUNS}, ("true",))


def _open_files(profile: str, *, settings: bool) -> list[Opened]:
    from cloche.host import settings_files

    opened = settings_files.open_settings() if settings else []
    if profile:
        from cloche.host.profile_place import settings_path
        from cloche.host.profiles import directory

        directory(profile)
        own = settings_files.open_one(Level.PROFILE, settings_path(profile))
        opened += [own] if own else []
    return opened


def words(name: str, given: Sequence[Word], example: str) -> tuple[str, ...]:
    """Return a list of words as the command line has them.

    Raises:
        UsageError: It is a single word.
    """
    if isinstance(given, (str, bytes)):
        raise UsageError(f"{name} takes a list", hint=f'Write {name}=["{example}"].')
    return tuple(os.fsdecode(word) for word in given)
