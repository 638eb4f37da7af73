"""Where each key of a TOML text stands (layer 2, pure): ``tomllib`` says what a text means, and not where.

A scanner over a text that ``tomllib`` has accepted, so that it only has to know where words begin and end (TOML 1.0,
https://toml.io/en/v1.0.0). It runs when an error has to be told or an origin was asked for, never for a run as such.
"""

from __future__ import annotations

from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    #: The way to a value: names of tables, and numbers in lists.
    Path = tuple[str | int, ...]

#: What stands deeper is not looked for: no settings do, and a key of ten thousand dots would cost a square of that.
_DEEPEST = 6
_BLANK = " \t\r"
_BARE_END = frozenset(" \t\r\n,]}#=.")
_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", '"': '"', "\\": "\\", "e": "\x1b"}
_DIGITS = {"u": 4, "U": 8, "x": 2}


class Place(Record):
    """A position in a text; both numbers count from 1."""

    line: int
    column: int


def find_places(text: str) -> dict[Path, Place]:
    """Return where each key stands, each member of a list, and each header of a table.

    Of a text that is not TOML there is what stands before the fault.
    """
    scanner = _Scanner(text)
    try:
        scanner.document()
    except (IndexError, ValueError, RecursionError):
        pass  # not TOML, or deeper than tomllib could have followed
    lines = _Lines(text)
    return {path: lines.place(offset) for path, offset in scanner.found.items()}


class _Lines:
    """Turns offsets into lines and columns; offsets mostly grow, so each line's end is looked for once."""

    def __init__(self, text: str) -> None:
        self._starts = [0]
        at = text.find("\n")
        while at >= 0:
            self._starts.append(at + 1)
            at = text.find("\n", at + 1)

    def place(self, offset: int) -> Place:
        low, high = 0, len(self._starts)
        while high - low > 1:
            middle = (low + high) // 2
            if self._starts[middle] <= offset:
                low = middle
            else:
                high = middle
        return Place(low + 1, offset - self._starts[low] + 1)


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self.found: dict[Path, int] = {}
        #: The number of the newest table of each array of tables.
        self._newest: dict[Path, int] = {}

    def document(self) -> None:
        """Scan the whole text."""
        table: Path = ()
        while True:
            self._skip(lines=True)
            if self._at == len(self._text):
                return
            start = self._at
            if self._text.startswith("[[", start):
                self._at += 2
                table = self._open(self._key(), is_member=True)
                self._at += 2
                self._note(table, start)
            elif self._text[start] == "[":
                self._at += 1
                table = self._open(self._key(), is_member=False)
                self._at += 1
                self._note(table, start)
            else:
                self._pair(table)

    def _open(self, key: list[str], *, is_member: bool) -> Path:
        path: Path = ()
        for number, part in enumerate(key[:_DEEPEST]):
            path = (*path, part)
            if is_member and number == len(key) - 1:
                self._newest[path] = self._newest.get(path, -1) + 1
                self._note(path, self._at)
            if path in self._newest:
                path = (*path, self._newest[path])
        return path

    def _note(self, path: Path, offset: int) -> None:
        # A table's parts may stand in several places: the first one counts.
        self.found.setdefault(path, offset)

    def _pair(self, table: Path) -> None:
        start = self._at
        path = table
        for part in self._key():
            if len(path) < _DEEPEST:
                path = (*path, part)
                self._note(path, start)
        self._at += 1  # the equals sign
        self._skip()
        self._value(path)

    def _key(self) -> list[str]:
        """Read a key with its dots, and the blanks behind it."""
        parts = []
        while True:
            self._skip()
            char = self._text[self._at]
            if char in "\"'":
                parts.append(self._string())
            else:
                start = self._at
                while self._text[self._at] not in _BARE_END:
                    self._at += 1
                if self._at == start:
                    raise ValueError("a key without a name")
                parts.append(self._text[start : self._at])
            self._skip()
            if self._text[self._at] != ".":
                return parts
            self._at += 1

    def _value(self, path: Path) -> None:
        char = self._text[self._at]
        if char in "\"'":
            self._string()
        elif char == "[":
            self._list(path)
        elif char == "{":
            self._inline(path)
        else:
            end = self._at
            # A date and its time have a blank between them.
            while end < len(self._text) and self._text[end] not in ",]}#\n":
                end += 1
            self._at = end

    def _list(self, path: Path) -> None:
        self._at += 1
        number = 0
        while True:
            self._skip(lines=True)
            if self._text[self._at] == "]":
                self._at += 1
                return
            if self._text[self._at] == ",":
                self._at += 1
                continue
            inner = (*path, number) if len(path) < _DEEPEST else path
            self._note(inner, self._at)
            self._value(inner)
            number += 1

    def _inline(self, path: Path) -> None:
        self._at += 1
        while True:
            self._skip(lines=True)
            if self._text[self._at] == "}":
                self._at += 1
                return
            if self._text[self._at] == ",":
                self._at += 1
                continue
            self._pair(path)

    def _skip(self, *, lines: bool = False) -> None:
        """Skip blanks; with ``lines`` also line ends and comments."""
        text, at = self._text, self._at
        while at < len(text):
            if text[at] in _BLANK or (lines and text[at] == "\n"):
                at += 1
            elif lines and text[at] == "#":
                end = text.find("\n", at)
                at = len(text) if end < 0 else end
            else:
                break
        self._at = at

    def _string(self) -> str:
        """Skip a string and return what it says (exactly that only for strings of one line, which keys are)."""
        text, start = self._text, self._at
        quote = text[start]
        if text.startswith(quote * 3, start):
            self._at = start + 3
            while not text.startswith(quote * 3, self._at):
                self._at += 2 if quote == '"' and text[self._at] == "\\" else 1
                if self._at >= len(text):
                    raise ValueError("a string without an end")
            self._at += 3
            # Up to two quotes may belong to the string.
            while text.startswith(quote, self._at) and self._at - start < len(text):
                self._at += 1
            return ""
        parts: list[str] = []
        at = start + 1
        while text[at] != quote:
            if quote == '"' and text[at] == "\\":
                piece, at = _escape(text, at + 1)
                parts.append(piece)
            else:
                parts.append(text[at])
                at += 1
        self._at = at + 1
        return "".join(parts)


def _escape(text: str, at: int) -> tuple[str, int]:
    """Read what follows a backslash; return it and where it ends."""
    digits = _DIGITS.get(text[at])
    if digits is None:
        return _ESCAPES.get(text[at], ""), at + 1
    return chr(int(text[at + 1 : at + 1 + digits], 16)), at + 1 + digits
