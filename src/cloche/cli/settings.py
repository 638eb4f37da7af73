"""``cloche settings`` (layer 6): what files of settings say to runs without a profile, and what is wrong with them."""

from __future__ import annotations

import os
import sys

from cloche.cli.listing import print_json
from cloche.domain.settings import Line, describe, in_toml, list_settings, load, read_text, settle
from cloche.errors import SettingsError, UsageError
from cloche.host import settings_files, xdg
from cloche.model.options import Level
from cloche.model.settings import all_keys
from cloche.profile.commented import commented
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from cloche.cli.parser import Parsed


def show(parsed: Parsed) -> int:
    """Handle ``cloche settings show``."""
    keys = all_keys()
    settled = settle(load(settings_files.open_settings(), keys), keys, {})
    show_lines(list_settings(settled, keys), parsed)
    return 0


def show_lines(lines: list[Line], parsed: Parsed) -> None:
    """Print settings: as JSON, as TOML, or with ``--origin`` one word a line and where it was said."""
    if parsed.get("json"):
        rows = [
            {
                "key": line.key,
                "value": line.value,
                "level": line.origin.level,
                "path": line.origin.path or None,
                "line": line.origin.line or None,
            }
            for line in lines
        ]
        print_json(rows)
    elif parsed.get("origin"):
        shown = [f"{line.key} = {in_toml(line.value)}" for line in lines]
        width = min(48, max(map(len, shown), default=0))
        for text, line in zip(shown, lines, strict=True):
            sys.stdout.write(f"{text:<{width}}  # {line.origin.level}{_where(line)}\n")
    else:
        lists = {name for name, key in all_keys().items() if key.is_list}
        words: dict[str, list[str]] = {}
        for line in lines:
            words.setdefault(line.key, []).append(in_toml(line.value))
        for name, values in words.items():
            value = f"[{', '.join(values)}]" if name in lists else values[-1]
            sys.stdout.write(f"{name} = {value}\n")


def _where(line: Line) -> str:
    return f": {line.origin}" if line.origin.path else ""


def path(parsed: Parsed) -> int:
    """Handle ``cloche settings path``: which files are read, the weakest first."""
    rows = [
        {"level": level, "path": path, "exists": os.path.exists(path)}
        for level, path in xdg.settings_places()
    ]
    if parsed.get("json"):
        print_json(rows)
    else:
        for row in rows:
            sys.stdout.write(f"{row['level']:<8}{row['path']}{'' if row['exists'] else ' (not there)'}\n")
    return 0


def check(parsed: Parsed) -> int:
    """Handle ``cloche settings check``; status 125 when something is wrong."""
    files = [(level_of(path), path) for path in parsed.operands] or xdg.settings_places()
    faults = [
        fault for level, path in files for fault in _faults(level, path, is_named=bool(parsed.operands))
    ]
    if parsed.get("json"):
        print_json([fault._asdict() for fault in faults])
    else:
        for fault in faults:
            sys.stdout.write(f"{fault.message}\n" + (f"  hint: {fault.hint}\n" if fault.hint else ""))
    return 125 if faults else 0


class _Fault(Record):
    """Something wrong with a file, as the listing has it; line and column are None where nobody knows them."""

    path: str
    line: int | None
    column: int | None
    message: str
    hint: str | None


def _faults(level: str, path: str, *, is_named: bool) -> list[_Fault]:
    try:
        opened = settings_files.open_one(level, path, trusted=not is_named or _is_in_use(level, path))
        if opened is None:
            return [_Fault(path, None, None, f"there is no file {path}", None)] if is_named else []
        _, problems = read_text(settings_files.read(opened), level, path, all_keys())
    except SettingsError as error:
        return [_Fault(path, None, None, error.message, error.hint)]
    return [
        _Fault(path, one.line or None, one.column or None, describe(path, one), one.hint) for one in problems
    ]


def _is_in_use(level: str, path: str) -> bool:
    """Tell whether a file that was named is one that runs read; others may lie wherever they are written."""
    places = [os.path.realpath(place) for _, place in xdg.settings_places()]
    return level == Level.PROFILE or os.path.realpath(path) in places


def level_of(path: str) -> str:
    """Return whose settings a file would hold, by where it lies."""
    profiles = os.path.realpath(os.path.join(xdg.data_dir(), "profiles"))
    return Level.PROFILE if os.path.realpath(path).startswith(profiles + "/") else Level.USER


def edit(parsed: Parsed) -> int:
    """Handle ``cloche settings edit``."""
    from cloche.cli.edit import edit as edit_file

    places = xdg.settings_places()
    if parsed.get("system"):
        return edit_file(*places[0])
    return edit_file(*places[-1])


def template(parsed: Parsed) -> int:
    """Handle ``cloche settings template``.

    Raises:
        UsageError: There is no such level.
    """
    level = str(parsed.get("level", Level.USER))
    if level not in (Level.SYSTEM, Level.USER, Level.PROFILE):
        raise UsageError(f"there are no settings of {level!r}", hint="There are system, user and profile.")
    sys.stdout.write(commented(all_keys().values(), level))
    return 0
