"""Settings read from a text, for tests that have no files."""

from __future__ import annotations

from pathlib import Path

from cloche.domain.setting_words import check_word
from cloche.model.options import Level
from cloche.model.settings import FILE_LEVELS, Settings, all_keys
from cloche.profile.read import Problem, read_settings

KEYS = all_keys()
PAGE = Path(__file__).resolve().parents[2] / "docs/settings.md"
BEGIN, END = "<!-- keys -->", "<!-- end of keys -->"


def read(text: str, level: str = Level.USER, path: str = "f") -> tuple[Settings, tuple[Problem, ...]]:
    """Return what a text says and what is wrong with it."""
    return read_settings(text, level, path, KEYS, check_word)


def said(text: str, level: str = Level.USER, path: str = "f") -> Settings:
    """Return what a text says that is right."""
    settings, problems = read(text, level, path)
    assert problems == ()
    return settings


def key_table() -> str:
    """Return the table of docs/settings.md."""
    rows = ["| key | value | option | where | meaning |", "|---|---|---|---|---|"]
    for key in KEYS.values():
        kind = f"list of {key.kind.removeprefix('a ')}s" if key.is_list else key.kind
        form = f"{kind}: `{key.metavar}`" if key.metavar and "|" not in key.metavar else kind
        default = f" Else: `{key.default}`." if key.default else ""
        where = "everywhere" if key.levels == FILE_LEVELS else ", ".join(key.levels)
        option = f"`{key.option}`" if key.option else "-"
        rows.append(f"| `{key.name}` | {form} | {option} | {where} | {key.help}{default} |".replace("\\", ""))
    return "\n".join(rows)


def written() -> str:
    """Return the page with the table as it should be."""
    head, _, rest = PAGE.read_text().partition(BEGIN)
    return f"{head}{BEGIN}\n{key_table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(written())
