"""Where keys stand in a TOML text: the scanner agrees with tomllib about every text that tomllib takes."""

from __future__ import annotations

import json
import string
import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloche.profile.places import find_places

TEXT = """\
# a comment with = and [brackets]
memory = "2G" # behind
'quoted key' = 1
a."b.c".d = [1, [2,
   3], # = "x"
]
long = \"\"\"
[not.a.table]
x = 1 \\\"\"\" \"\"\"\"
raw = '''
y = 2''''
when = 1979-05-27 07:32:00
inline = { x = 1, "y" = { z = [true] } }

[table]
k = 1
[[share]]
dir = "/a"
[[share]]
  dir = "/b"
[share.inner]
deep = 1
"""
PLACES = {
    ("memory",): (2, 1),
    ("quoted key",): (3, 1),
    ("a",): (4, 1),
    ("a", "b.c"): (4, 1),
    ("a", "b.c", "d"): (4, 1),
    ("a", "b.c", "d", 0): (4, 14),
    ("a", "b.c", "d", 1): (4, 17),
    ("a", "b.c", "d", 1, 0): (4, 18),
    ("a", "b.c", "d", 1, 1): (5, 4),
    ("long",): (7, 1),
    ("raw",): (10, 1),
    ("when",): (12, 1),
    ("inline",): (13, 1),
    ("inline", "x"): (13, 12),
    ("inline", "y"): (13, 19),
    ("inline", "y", "z"): (13, 27),
    ("inline", "y", "z", 0): (13, 32),
    ("table",): (15, 1),
    ("table", "k"): (16, 1),
    ("share", 0): (17, 1),
    ("share", 0, "dir"): (18, 1),
    ("share", 1): (19, 1),
    ("share", 1, "dir"): (20, 3),
    ("share", 1, "inner"): (21, 1),
    ("share", 1, "inner", "deep"): (22, 1),
}


def paths(value: Any, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    """Return the way to everything in a value."""
    found = {path} if path else set()
    if isinstance(value, dict):
        for name, member in value.items():
            found |= paths(member, (*path, name))
    elif isinstance(value, list):
        for number, member in enumerate(value):
            found |= paths(member, (*path, number))
    return found


def test_every_key_has_its_place() -> None:
    """Lines and columns of keys, members of lists, tables and their arrays are those of the text."""
    tomllib.loads(TEXT)
    found = dict(find_places(TEXT))
    found.pop(("share",))
    assert found == PLACES


def test_line_ends_of_other_systems() -> None:
    """A carriage return before the line's end is a blank."""
    assert find_places("a = 1\r\n[b]\r\nc = 2\r\n") == {("a",): (1, 1), ("b",): (2, 1), ("b", "c"): (3, 1)}


BARE = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=6)
QUOTED = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=6)
NAMES = BARE | QUOTED
#: Strings of TOML have no surrogates.
TEXT_LETTERS = st.characters(codec="utf-8")
SCALARS = (
    st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.text(TEXT_LETTERS, max_size=12)
    | st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


def as_key(name: str) -> str:
    """Return a key as it can be written."""
    plain = name and set(name) <= set(string.ascii_letters + string.digits + "_-")
    return name if plain else json.dumps(name, ensure_ascii=True) if name.isascii() else f'"{as_text(name)}"'


def as_text(text: str) -> str:
    """Return a basic string's inside, every special character escaped."""
    return "".join(char if char.isalnum() else f"\\U{ord(char):08x}" for char in text)


def as_value(value: Any, style: Any) -> str:
    """Return a value in TOML, in one of the ways there are."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"{value:.6f}"
    if isinstance(value, str):
        way = style(5)
        if way == 0 and not set(value) & set("'\n\r") and value.isprintable():
            return f"'{value}'"
        if way == 1 and "'''" not in value and value.replace("\n", "").isprintable() and value[-1:] != "'":
            return f"'''\n{value}'''"
        if way == 2:
            return f'"""\\\n  {as_text(value)}{chr(34) * style(3)}"""'
        if way == 3:
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        return f'"{as_text(value)}"'
    between = (", ", ",\n  ", " , # c = 1\n")[style(3)]
    if isinstance(value, list):
        return "[" + between.join(as_value(member, style) for member in value) + ("\n" if value else "") + "]"
    return (
        "{" + ", ".join(f"{as_key(name)} = {as_value(member, style)}" for name, member in value.items()) + "}"
    )


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(NAMES, VALUES, max_size=5),
    st.lists(st.dictionaries(NAMES, SCALARS, max_size=2)),
    st.data(),
)
def test_every_path_of_a_document_is_found_where_its_key_is(
    document: dict[str, Any], tables: list[dict[str, Any]], data: st.DataObject
) -> None:
    """Whatever the style, there is a place for everything that tomllib finds, and the text there is that key."""

    def style(ways: int) -> int:
        return data.draw(st.integers(0, ways - 1))

    lines = [f"{' ' * style(3)}{as_key(name)} = {as_value(value, style)}" for name, value in document.items()]
    if "tables" not in document:
        for table in tables:
            lines.append("[[ tables ]] # [x]")
            lines += [f"{as_key(name)}={as_value(value, style)}" for name, value in table.items()]
    text = "\n".join(lines)
    meant = tomllib.loads(text)
    found = find_places(text)
    shallow = {path for path in paths(meant) if len(path) <= 6}
    assert shallow <= set(found)
    for path in shallow:
        last = list(path).pop()
        line, column = found[path]
        rest = text.split("\n")[line - 1][column - 1 :]
        if isinstance(last, str) and path != ("tables",):
            assert rest.startswith(as_key(last))


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("a.=[]{}\"'#\\\n ,1\r\t"), max_size=40) | st.text(max_size=40))
def test_any_text_has_an_end(text: str) -> None:
    """Also what is not TOML is scanned to an end, and what tomllib takes has all its places."""
    found = find_places(text)
    try:
        meant = tomllib.loads(text)
    except ValueError:
        return
    assert {path for path in paths(meant) if len(path) <= 6} <= set(found)


@pytest.mark.parametrize(
    "text", ["a." * 20_000 + "a = 1", "[" * 30_000, "a=" + "[" * 30_000, "a={b=" * 10_000]
)
def test_depth_is_no_attack(text: str) -> None:
    """Ten thousands of dots or brackets are scanned without a stack or memory growing with their square."""
    assert len(find_places(text)) <= 7
