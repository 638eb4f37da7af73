"""The command line of a run with files of settings below it (layer 6); imported where there may be one."""

from __future__ import annotations

from cloche.domain.settings import load, settle
from cloche.errors import ClocheError
from cloche.host.settings_files import open_settings
from cloche.model.settings import all_keys
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.cli.parser import Parsed
    from cloche.domain.settings import Settled


def run_with_settings(parsed: Parsed, run: Callable[[Parsed], int]) -> int:
    """Run what the command line says, with what files say where it says nothing itself.

    Raises:
        SettingsError: A file cannot be read or trusted, or is wrong.
        ClocheError: As the run; where a word of a file is the reason, the hint says which.
    """
    keys = all_keys()
    settled = settle(load(open_settings(), keys), keys, parsed.values, parsed.get("reset", ()))  # type: ignore[arg-type]
    try:
        return run(parsed._replace(values=dict(settled.values), settings=settled))
    except ClocheError as error:
        blame(error, settled)
        raise


def blame(error: ClocheError, settled: Settled) -> None:
    """Say in the hint of an error which line of which file has led to it, if one has."""
    from cloche.cli.request import read_variable
    from cloche.domain.settings import find_origin
    from cloche.host.networks import resolve_network
    from cloche.host.paths import resolve_disk, resolve_include, resolve_share

    readers: dict[str, Callable[[str], object]] = {
        "share": resolve_share,
        "include": resolve_include,
        "disk": resolve_disk,
        "net": resolve_network,
        "env": read_variable,
    }
    for name, reader in readers.items():
        for one in settled.chosen.get(name, ()):
            try:
                reader(one.entry.word)
            except ClocheError as again:
                if again.message == error.message:
                    error.hint = f"It is set in {find_origin(one)}. {error.hint or ''}".rstrip()
                    return
