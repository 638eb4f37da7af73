"""The command line of a run with files of settings below it (layer 6); imported where there may be one."""

from __future__ import annotations

from cloche.cli.profile_choice import choose_profile
from cloche.domain.settings import load, settle
from cloche.errors import ClocheError, CommandNotExecutableError, CommandNotFoundError
from cloche.host.profile_place import has_settings, settings_path
from cloche.host.profiles import directory
from cloche.host.settings_files import open_one, open_settings
from cloche.model.options import Level
from cloche.model.settings import all_keys
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.cli.parser import Parsed
    from cloche.domain.settings import Settled
    from cloche.model.settings import Key, Settings
    from cloche.profile.merge import Chosen


def run_with_settings(parsed: Parsed, run: Callable[[Parsed], int]) -> int:
    """Run what the command line says, with what files say where it says nothing itself.

    Raises:
        SettingsError: A file cannot be read or trusted, or is wrong.
        ClocheError: As the run; where a word of a file is the reason, the hint says which.
    """
    keys = all_keys()
    files = load(open_settings(), keys)
    parsed = _settle(parsed, files, keys)
    profile = choose_profile(parsed)
    own = (
        open_one(Level.PROFILE, settings_path(profile))
        if has_settings(profile) and directory(profile)
        else None
    )
    if own is not None:
        parsed = _settle(parsed, [*files, *load([own], keys)], keys)
    is_application = not parsed.operands and bool(parsed.get("command"))
    if is_application:
        args = parsed.get("args", ())
        parsed = parsed._replace(operands=(str(parsed.get("command")), *args))  # type: ignore[misc]
    try:
        return run(parsed)
    except ClocheError as error:
        assert parsed.settings is not None
        if is_application and isinstance(error, CommandNotFoundError | CommandNotExecutableError):
            _name_origin(error, parsed.settings.chosen["command"][-1])
        else:
            blame(error, parsed.settings, keys)
        raise


def _settle(parsed: Parsed, files: list[Settings], keys: dict[str, Key]) -> Parsed:
    given = parsed.values if parsed.settings is None else parsed.settings.given
    settled = settle(files, keys, given, given.get("reset", ()))  # type: ignore[arg-type]
    return parsed._replace(values=dict(settled.values), settings=settled)


def blame(error: ClocheError, settled: Settled, keys: dict[str, Key]) -> None:
    """Say in the hint of an error which line of which file has led to it, if one has."""
    from cloche.domain.request import read_variable
    from cloche.host.images import resolve_disk, resolve_mounts
    from cloche.host.networks import resolve_network
    from cloche.host.paths import resolve_include, resolve_share

    readers: dict[str, Callable[[str], object]] = {
        "share": resolve_share,
        "include": resolve_include,
        "mount": lambda word: resolve_mounts((word,)),
        "disk": resolve_disk,
        "net": resolve_network,
        "env": read_variable,
        "default_profile": directory,
    }
    for name, reader in readers.items():
        for one in settled.chosen.get(name, ()):
            try:
                reader(one.entry.word)
            except ClocheError as again:
                if again.message == error.message:
                    _name_origin(error, one)
                    return
    named = {word.strip(".,:;`'") for word in f"{error.message} {error.hint or ''}".split()}
    # A value that the command line gives itself is not among them; the members of lists were looked at.
    for name, words in settled.chosen.items():
        if not keys[name].is_list and keys[name].option and keys[name].option in named:
            _name_origin(error, words[-1])
            return


def _name_origin(error: ClocheError, one: Chosen) -> None:
    from cloche.domain.settings import find_origin

    error.hint = f"It is set in {find_origin(one)}. {error.hint or ''}".rstrip()
