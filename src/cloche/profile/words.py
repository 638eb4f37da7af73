"""From a table of ``cloche.toml`` to the word that the command line would have (layer 2, pure)."""

from __future__ import annotations

from cloche.errors import UsageError
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def join_word(name: str, table: Mapping[str, object]) -> str:
    """Return the word of an option that a table with the right fields stands for.

    Raises:
        UsageError: No word can say this.
    """
    return {"share": _share, "disk": _disk}[name](table)


def _share(table: Mapping[str, object]) -> str:
    place = table.get("at")
    source = str(table["dir"])
    if place is not None and ":" in str(place):
        raise UsageError(f"{place!r} cannot be a share's place: it holds a colon", hint="Take another place.")
    if place is None and ":at=" in source:
        raise UsageError(
            f"the directory {source!r} is named like an option", hint="Say its place: at = PATH."
        )
    word = f"{source}:{'rw' if table.get('rw') else 'ro'}"
    return word if place is None else f"{word}:at={place}"


def _disk(table: Mapping[str, object]) -> str:
    file = str(table["file"])
    word = f"{table['tag']}={file},format={table.get('format', 'raw')}"
    if "=" in str(table["tag"]):
        raise UsageError(f"{table['tag']!r} cannot be a tag", hint="A tag has no equals sign.")
    if file.endswith(",ro") and not table.get("ro"):
        raise UsageError(f"the file {file!r} is named like an option", hint="Call it something else.")
    return f"{word},ro" if table.get("ro") else word
