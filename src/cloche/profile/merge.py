"""Laying settings over each other (layer 2, pure): the stronger file wins, lists grow, and each word keeps its origin.

A value replaces that of a weaker level. The members of a list are added behind those of weaker levels; one that is for
the same thing (the same place, variable, tag) takes the place of theirs. ``reset`` forgets what weaker levels say.
"""

from __future__ import annotations

from cloche.model.settings import RESET_KEY, Kind
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from cloche.model.settings import Entry, Key, Settings

    #: Returns what a member of a list is for; members of two levels that are for the same are the stronger one's.
    Identify = Callable[[str, str], object]


class Chosen(Record):
    """A word that counts, and which file says it."""

    entry: Entry
    level: str
    path: str


def merge(files: Iterable[Settings], keys: Mapping[str, Key], identify: Identify) -> dict[str, list[Chosen]]:
    """Return what counts of several files, the weakest first, by key; a key that nobody sets is not there."""
    chosen: dict[str, list[Chosen]] = {}
    for settings in files:
        for entry in settings.entries:
            if entry.key == RESET_KEY:
                chosen.pop(entry.word, None)
        fresh: dict[str, list[Chosen]] = {}
        for entry in settings.entries:
            if entry.key != RESET_KEY:
                fresh.setdefault(entry.key, []).append(Chosen(entry, settings.level, settings.path))
        for name, words in fresh.items():
            kept = left_over(name, chosen.get(name, ()), words, identify) if keys[name].is_list else []
            chosen[name] = [*kept, *words]
    return chosen


def left_over(
    name: str, weaker: Iterable[Chosen], stronger: Iterable[Chosen], identify: Identify
) -> list[Chosen]:
    """Return the members of a weaker list that a stronger one leaves."""
    taken = [identify(name, one.entry.word) for one in stronger]
    return [one for one in weaker if identify(name, one.entry.word) not in taken]


def values_of(chosen: Mapping[str, list[Chosen]], keys: Mapping[str, Key]) -> dict[str, object]:
    """Return the values as the command line's parser would have them.

    Raises:
        UsageError: A word that cannot be; ``read_settings`` lets none through.
    """
    values: dict[str, object] = {}
    for name, words in chosen.items():
        key = keys[name]
        read = tuple(read_word(key, one.entry.word) for one in words)
        values[name] = read if key.is_list else read[-1]
    return values


def read_word(key: Key, word: str) -> object:
    """Return the value that a word stands for."""
    if key.kind == Kind.SWITCH or (key.kind == Kind.SWITCH_OR_TEXT and word in ("true", "false")):
        return word == "true"
    return key.convert(word)
