"""What files of settings say to a run (layer 5): opened, read, laid over each other, with the origin of each word."""

from __future__ import annotations

import os

from cloche import log
from cloche.domain.setting_words import check_word, identify
from cloche.errors import SettingsError, UsageError
from cloche.host import settings_cache, settings_files
from cloche.model.options import Level
from cloche.model.settings import HARMLESS, Kind, Settings
from cloche.profile.merge import merge, values_of
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cloche.host.settings_files import Opened
    from cloche.model.settings import Entry, Key
    from cloche.profile.merge import Chosen
    from cloche.profile.read import Problem


class Origin(Record):
    """Where a word was said; ``line`` is 0 where that is not known."""

    level: str
    path: str
    line: int

    def __str__(self) -> str:
        """The place as errors name it."""
        return f"{self.path}:{self.line}" if self.line else self.path or self.level


def load(files: Iterable[Opened], keys: dict[str, Key]) -> list[Settings]:
    """Return what each file says, and close it.

    Raises:
        SettingsError: One cannot be read, or something is wrong with it: where, and what.
    """
    return [_load(opened, keys) for opened in files]


def _load(opened: Opened, keys: dict[str, Key]) -> Settings:
    log.debug(f"settings are read from {opened.path}")
    status = os.fstat(opened.fd)
    known = settings_cache.find(opened.level, status)
    if known is not None and _is_readable(known, keys):
        os.close(opened.fd)
        return Settings(opened.level, opened.path, known)
    settings, problems = read_text(settings_files.read(opened), opened.level, opened.path, keys)
    if problems:
        raise wrong(opened.path, problems)
    settings_cache.store(opened.level, status, settings.entries)
    return settings


def _is_readable(entries: Iterable[Entry], keys: dict[str, Key]) -> bool:
    """Tell whether this cloche knows what another one may have kept."""
    try:
        for entry in entries:
            keys[entry.key].convert(entry.word)
    except (KeyError, UsageError):
        return False
    return True


def read_text(text: str, level: str, path: str, keys: dict[str, Key]) -> tuple[Settings, tuple[Problem, ...]]:
    """Return what a text says and everything that is wrong with it."""
    from cloche.profile.read import read_settings

    return read_settings(text, level, path, keys, check_word)


def wrong(path: str, problems: tuple[Problem, ...]) -> SettingsError:
    """Return the error that tells the first of the problems of a file."""
    first = problems[0]
    more = len(problems) - 1
    others = f" {more} more: `cloche settings check` lists them." if more else ""
    return SettingsError(describe(path, first), hint=first.hint + others)


def describe(path: str, problem: Problem) -> str:
    """Return a problem in one line, as compilers do."""
    where = f":{problem.line}:{problem.column}" if problem.line else ""
    return f"{path}{where}: {problem.message}"


def what_opens(settings: Settings) -> tuple[str, ...]:
    """Return the keys of settings from elsewhere that would show a run something of the host's, or hold it less."""
    return tuple(sorted({entry.key for entry in settings.entries} - HARMLESS))


class Settled(Record):
    """A run's settings.

    Attributes:
        chosen: What counts of all files, by key.
        given: What the command line, or a call, says itself.
        taken_back: Keys of which files may say what they like.
        values: What the run is told, as the command line's parser would have it.
    """

    chosen: dict[str, list[Chosen]]
    given: dict[str, object]
    taken_back: tuple[str, ...]
    values: dict[str, object]


def settle(
    files: list[Settings], keys: dict[str, Key], given: dict[str, object], taken_back: tuple[str, ...] = ()
) -> Settled:
    """Lay what files say, the weakest first, below what was given."""
    chosen = merge(files, keys, identify)
    for name in taken_back:
        chosen.pop(name, None)
    for name, value in given.items():
        if name not in chosen:
            continue
        if isinstance(value, tuple) and keys[name].is_list:
            mine = [identify(name, str(word)) for word in value]
            chosen[name] = [one for one in chosen[name] if identify(name, one.entry.word) not in mine]
        else:
            del chosen[name]
    values = values_of(chosen, keys)
    for name, value in given.items():
        below = values.get(name)
        values[name] = (*below, *value) if isinstance(below, tuple) and isinstance(value, tuple) else value
    return Settled(chosen, given, taken_back, values)


class Line(Record):
    """One line of a listing of settings: a key, its value or one of its list, and whose it is."""

    key: str
    value: bool | int | float | str
    origin: Origin


def list_settings(settled: Settled, keys: dict[str, Key]) -> list[Line]:
    """Return every setting that holds, members of lists one by one, what is built in among them."""
    lines = []
    places = _Places()
    for key in keys.values():
        words = settled.chosen.get(key.name, [])
        lines += [Line(key.name, _value(key, one.entry.word), places.find(one)) for one in words]
        if key.name in settled.given:
            given = settled.given[key.name]
            members = given if isinstance(given, tuple) else (given,)
            lines += [Line(key.name, _plain(member), Origin(Level.COMMAND, "", 0)) for member in members]
        elif not words and key.default:
            lines.append(Line(key.name, _value(key, key.default), Origin(Level.BUILT_IN, "", 0)))
    return lines


def _value(key: Key, word: str) -> bool | int | str:
    """Return a word as a file would have it."""
    if key.kind == Kind.COUNT:
        return int(word)
    is_switch = key.kind in (Kind.SWITCH, Kind.SWITCH_OR_TEXT) and word in ("true", "false")
    return word == "true" if is_switch else word


def _plain(value: object) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)


def in_toml(value: bool | float | str) -> str:
    """Return a value as it can be written; nothing in it moves a terminal's cursor."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + "".join(map(_escape, value)) + '"'
    return str(value)


def _escape(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    return char if char.isprintable() else f"\\U{ord(char):08x}"


class _Places:
    """Finds lines in files, each of which is read again once."""

    def __init__(self) -> None:
        self._found: dict[str, Mapping[tuple[str | int, ...], tuple[int, int]]] = {}

    def find(self, one: Chosen) -> Origin:
        from cloche.profile.places import find_places

        if one.path not in self._found:
            opened = settings_files.open_one(one.level, one.path)
            self._found[one.path] = find_places(settings_files.read(opened)) if opened else {}
        key, _, member = one.entry
        line, _ = self._found[one.path].get((key,) if member is None else (key, member), (0, 0))
        return Origin(one.level, one.path, line)


def find_origin(one: Chosen) -> Origin:
    """Return where a word was said; its file is read again."""
    return _Places().find(one)
