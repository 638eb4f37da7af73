"""Files laid over each other: what counts, whoever says it, holds for any files."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloche.domain.setting_words import identify
from cloche.domain.settings import settle
from cloche.model.options import Level
from cloche.model.settings import RESET_KEY, Entry, Settings
from cloche.profile.merge import merge
from support.settings import KEYS

VALUES = {"memory": ("512", "1024"), "cpus": ("1", "2"), "here": ("true", "false"), "workdir": ("/", "/a")}
LISTS = {
    "share": ("/a", "/a:rw", "/b", "/c:at=/a", "/b/../b"),
    "env": ("A=1", "A=2", "B", "B="),
    "disk": ("x=/1", "x=/2", "y=/1"),
    "insecure_no_jail": ("cgroups", "ids"),
}


def entries_of(words: list[tuple[str, str]], reset: list[str]) -> tuple[Entry, ...]:
    """Return what a file says: lists as often as it likes, values once."""
    once = {key: word for key, word in words if key in VALUES}
    lists = [Entry(key, word, number) for number, (key, word) in enumerate(words) if key in LISTS]
    return (
        *(Entry(RESET_KEY, key, number) for number, key in enumerate(reset)),
        *(Entry(key, word) for key, word in once.items()),
        *lists,
    )


WORDS = st.sampled_from(
    [(key, word) for table in (VALUES, LISTS) for key, words in table.items() for word in words]
)
ENTRIES = st.builds(
    entries_of, st.lists(WORDS, max_size=6), st.lists(st.sampled_from([*VALUES, *LISTS]), max_size=1)
)
FILES = st.lists(ENTRIES, max_size=4).map(
    lambda files: [Settings(Level.USER, f"file{number}", entries) for number, entries in enumerate(files)]
)


def is_reset(key: str, file: Settings) -> bool:
    """Tell whether a file forgets what weaker ones say of a key."""
    return any(entry.key == RESET_KEY and entry.word == key for entry in file.entries)


@given(FILES)
def test_what_counts_of_any_files(files: list[Settings]) -> None:
    """A value is the strongest file's that has it and is not reset above; a list's members are for different things."""
    chosen = merge(files, KEYS, identify)
    for key in (*VALUES, *LISTS):
        said = [
            (number, entry)
            for number, file in enumerate(files)
            if not any(
                Entry(RESET_KEY, key) == entry._replace(member=None)
                for f in files[number + 1 :]
                for entry in f.entries
            )
            for entry in file.entries
            if entry.key == key
        ]
        got = [(one.path, one.entry) for one in chosen.get(key, ())]
        if key in VALUES:
            assert got == [(f"file{number}", entry) for number, entry in said[-1:]]
            continue
        kept = [
            (number, entry)
            for number, entry in said
            if not any(
                later > number and identify(key, other.word) == identify(key, entry.word)
                for later, other in said
            )
        ]
        assert got == [(f"file{number}", entry) for number, entry in kept]


@given(
    FILES, st.lists(st.sampled_from(LISTS["share"]), max_size=2), st.sampled_from([None, 3]), st.booleans()
)
def test_the_command_line_is_the_strongest(
    files: list[Settings], shares: list[str], cpus: int | None, taken_back: bool
) -> None:
    """What is given stands, behind what is left of lists; what is taken back is only what was given."""
    given_now: dict[str, object] = {"share": tuple(shares)} if shares else {}
    given_now |= {"cpus": cpus} if cpus else {}
    settled = settle(files, KEYS, given_now, ("share",) if taken_back else ())
    alone = settle(files, KEYS, {})
    share = settled.values.get("share", ())
    assert isinstance(share, tuple)
    assert share[len(share) - len(shares) :] == tuple(shares)
    below = share[: len(share) - len(shares)]
    weaker = alone.values.get("share", ())
    assert isinstance(weaker, tuple)
    mine = [identify("share", word) for word in shares]
    assert below == (
        () if taken_back else tuple(word for word in weaker if identify("share", word) not in mine)
    )
    assert settled.values.get("cpus") == (cpus or alone.values.get("cpus"))
    assert {name: value for name, value in settled.values.items() if name not in ("share", "cpus")} == {
        name: value for name, value in alone.values.items() if name not in ("share", "cpus")
    }
