"""A file of settings that says nothing yet (layer 2, pure): every key with its meaning, commented out."""

from __future__ import annotations

from cloche.model.settings import VERSION, VERSION_KEY
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cloche.model.settings import Key

_WIDTH = 96


def commented(keys: Iterable[Key], level: str) -> str:
    """Return the text of a new file for settings of one level."""
    lines = [
        f"# Settings of cloche ({level}). What is commented out holds no value; docs/settings.md explains the rest.",
        "# `cloche settings check` says what is wrong with it, `cloche settings show --origin` what counts.",
        f"{VERSION_KEY} = {VERSION}",
    ]
    for key in keys:
        if key.name == VERSION_KEY or level not in key.levels:
            continue
        lines += ["", *_wrap(key.help)]
        if key.default:
            lines.append(f"# When nobody says anything: {key.default}.")
        lines.append(f"#{key.name} = {key.example}")
    for key in keys:
        if key.fields and level in key.levels:
            lines += ["", f"# The same as a word of `{key.name}`, taken apart:", f"#[[{key.name}]]"]
            lines += [f"#{field.name} = {field.example}" for field in key.fields if field.example]
    return "\n".join(lines) + "\n"


def _wrap(text: str) -> list[str]:
    lines, line = [], "#"
    for word in text.split():
        if len(line) + 1 + len(word) > _WIDTH:
            lines.append(line)
            line = "#"
        line += f" {word}"
    return [*lines, line]
