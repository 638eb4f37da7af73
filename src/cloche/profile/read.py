"""Reading ``cloche.toml`` (layer 2, pure): from a text to what it says, and to everything that is wrong with it."""

from __future__ import annotations

from cloche.errors import UsageError
from cloche.model.options import Level
from cloche.model.settings import RESET_KEY, TYPES, VERSION, VERSION_KEY, Entry, Kind, Settings
from cloche.profile.places import Place, find_places
from cloche.profile.words import join_word
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cloche.model.settings import Key
    from cloche.profile.places import Path

    #: Raises UsageError for a word that cannot be; the host is not looked at.
    Check = Callable[[Key, str], None]

_TYPE_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number with a fraction",
    str: "a string",
    list: "a list",
    dict: "a table",
}
_NEAR = 0.6


class Problem(Record):
    """Something wrong with a file: where (line 0: nobody knows), what, and what to do."""

    line: int
    column: int
    message: str
    hint: str


def read_settings(
    text: str, level: str, path: str, keys: Mapping[str, Key], check: Check
) -> tuple[Settings, tuple[Problem, ...]]:
    """Return what a text says and what is wrong with it, in the order of the lines.

    Args:
        text: The file's content.
        level: Whose settings they are.
        path: The file's name, kept in what is returned.
        keys: What there is (``model.settings.all_keys``).
        check: Looks at each word, when its own form is right.
    """
    import tomllib

    try:
        table = tomllib.loads(text)
    except RecursionError:
        return Settings(level, path), (
            Problem(0, 0, "it is nested too deeply", "No setting is a list of lists."),
        )
    except ValueError as error:
        return Settings(level, path), (_of_toml(text, str(error)),)
    reader = _Reader(level, keys, check)
    reader.read(table)
    problems: tuple[Problem, ...] = ()
    if reader.faults:
        places = find_places(text)
        found = [Problem(*_place(places, where), message, hint) for where, message, hint in reader.faults]
        problems = tuple(sorted(found, key=lambda one: (one.line, one.column)))
    return Settings(level, path, tuple(reader.entries)), problems


def _place(places: Mapping[Path, Place], where: Path) -> Place:
    """Return where something stands, or what holds it."""
    while where:
        if where in places:
            return places[where]
        where = where[:-1]
    return Place(0, 0)


def _of_toml(text: str, message: str) -> Problem:
    """Take apart what tomllib says: ``REASON (at line N, column M)``."""
    reason, _, where = message.rpartition(" (at ")
    line = column = 0
    words = where.rstrip(")").replace(",", "").split()
    if where == "end of document)":
        line = text.count("\n") + 1
        column = len(text) - text.rfind("\n")
    elif len(words) == 4 and words[1].isdigit() and words[3].isdigit():
        line, column = int(words[1]), int(words[3])
    else:
        reason = message
    reason = reason[:1].lower() + reason[1:]
    hint = "`cloche settings template` prints a file that is right."
    if text.startswith("\ufeff"):
        reason, hint = "it begins with a byte order mark", "Save it as UTF-8 without one."
    elif reason == "cannot overwrite a value":
        hint = "The same key stands above, and can stand there once."
    elif reason.startswith("exceeds the limit"):  # of Python's, for digits
        reason = "a number is too long"
    elif reason == "invalid value":
        hint = "A string needs quotes; true, false and numbers have none."
    return Problem(line, column, reason, hint)


class _Reader:
    def __init__(self, level: str, keys: Mapping[str, Key], check: Check) -> None:
        self._level = level
        self._keys = keys
        self._check = check
        self.entries: list[Entry] = []
        self.faults: list[tuple[Path, str, str]] = []

    def read(self, table: Mapping[str, object]) -> None:
        """Read the whole file; of another version nothing but that is told."""
        version = table.get(VERSION_KEY, VERSION)
        if type(version) is int and version > VERSION:
            self._fault(
                (VERSION_KEY,),
                f"it is of version {version}, and this cloche reads version {VERSION}",
                "A newer cloche has written it, and can read it.",
            )
            return
        for name, value in table.items():
            key = self._keys.get(name)
            if key is None:
                self._fault((name,), f"there is no setting {name!r}", _suggest(name, self._keys))
            elif self._level not in key.levels:
                where = " and ".join(key.levels)
                self._fault(
                    (name,),
                    f"{name} cannot be set here",
                    f"It belongs into the settings of a {where}."
                    if key.levels == (Level.PROFILE,)
                    else f"It belongs into the settings of {where}.",
                )
            elif name == VERSION_KEY and value != VERSION:
                self._fault((name,), f"there is no version {value!r}", f"Write {name} = {VERSION}.")
            elif key.is_list:
                self._list(key, value)
            else:
                self._take(key, value, (name,))

    def _fault(self, where: Path, message: str, hint: str) -> None:
        self.faults.append((where, message, hint))

    def _list(self, key: Key, value: object) -> None:
        if key.pairs and isinstance(value, dict):
            for name, member in value.items():
                if "=" in name:
                    self._fault(
                        (key.name, name), f"{name!r} of {key.name}: the name holds '='", 'Write NAME = "...".'
                    )
                elif isinstance(member, str):
                    self._word(key, f"{name}={member}", (key.name, name), name)
                else:
                    self._fault(
                        (key.name, name),
                        f"{name!r} of {key.name} must be a string, not {_type_name(member)}",
                        'Write NAME = "...".',
                    )
            return
        if not isinstance(value, list):
            self._fault(
                (key.name,),
                f"{key.name} must be a list, not {_type_name(value)}",
                f"Write {key.name} = {key.example}.",
            )
            return
        for index, member in enumerate(value):
            where = (key.name, index)
            if key.fields and isinstance(member, dict):
                self._table(key, member, where, index)
            else:
                self._take(key, member, where, index)

    def _table(self, key: Key, table: Mapping[str, object], where: Path, index: int) -> None:
        fields = {field.name: field for field in key.fields}
        before = len(self.faults)
        for name, value in table.items():
            if name not in fields:
                self._fault(
                    (*where, name),
                    f"[[{key.name}]] has no {name!r}",
                    _suggest(name, fields, f"It has {', '.join(fields)}."),
                )
            elif type(value) not in TYPES[fields[name].kind]:
                self._fault(
                    (*where, name),
                    f"{name} must be {fields[name].kind}, not {_type_name(value)}",
                    f"See [[{key.name}]] in `cloche settings template`.",
                )
        missing = [name for name, field in fields.items() if field.required and name not in table]
        if missing and before == len(self.faults):
            self._fault(where, f"a [[{key.name}]] lacks {missing[0]!r}", f"It has {', '.join(fields)}.")
        if before == len(self.faults):
            try:
                word = join_word(key.name, table)
            except UsageError as error:
                self._fault(where, error.message, error.hint or "")
            else:
                self._word(key, word, where, index)

    def _take(self, key: Key, value: object, where: Path, index: int | None = None) -> None:
        what = f"a member of {key.name}" if index is not None else key.name
        if type(value) not in TYPES[key.kind]:
            form = f"{key.kind} or a table" if key.fields else key.kind
            self._fault(
                where,
                f"{what} must be {form}, not {_type_name(value)}",
                f"Write {key.name} = {key.example}.",
            )
            return
        word = ("false", "true")[value] if isinstance(value, bool) else str(value)
        if key.kind in (Kind.SWITCH, Kind.SWITCH_OR_TEXT) and isinstance(value, bool):
            self.entries.append(Entry(key.name, word, index))
        else:
            self._word(key, word, where, index)

    def _word(self, key: Key, word: str, where: Path, index: int | str | None) -> None:
        try:
            self._look_at(key, word)
        except UsageError as error:
            self._fault(where, f"{key.name}: {error.message}", error.hint or "")
        else:
            self.entries.append(Entry(key.name, word, index))

    def _look_at(self, key: Key, word: str) -> None:
        if "\0" in word:
            raise UsageError("it holds a NUL byte, which no word can", hint="Leave it out.")
        if key.name == RESET_KEY and word not in self._keys:
            raise UsageError(f"there is no setting {word!r}", hint=_suggest(word, self._keys))
        key.convert(word)
        self._check(key, word)


def _type_name(value: object) -> str:
    return _TYPE_NAMES.get(type(value), "a date or a time")


def _suggest(name: str, names: Mapping[str, object], otherwise: str = "") -> str:
    # Imported only when something is wrong: difflib is slow to import.
    import difflib

    near = difflib.get_close_matches(name.replace("-", "_").lower(), names, n=1, cutoff=_NEAR)
    return (
        f"Did you mean {near[0]}?" if near else otherwise or "`cloche settings template` lists what there is."
    )
