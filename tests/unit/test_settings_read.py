"""Reading cloche.toml: every option can be said, everything else is an error with its place and the remedy."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.cli.parser import RESET, parse
from cloche.cli.verbs import COMMON, RUN, VERBS
from cloche.domain.settings import in_toml, what_opens
from cloche.errors import UsageError
from cloche.model.options import NOT_IN_FILES, RUN_OPTIONS, Level
from cloche.model.settings import (
    FILE_LEVELS,
    HARMLESS,
    RESET_KEY,
    TYPES,
    VERSION_KEY,
    Key,
    Kind,
    Settings,
)
from cloche.profile.commented import commented
from cloche.profile.merge import merge as merge_files
from cloche.profile.merge import values_of
from support.settings import KEYS, PAGE, read, said, written


def merged(*files: Settings) -> dict[str, object]:
    """Return the values that count of several files."""
    from cloche.domain.setting_words import identify

    return values_of(merge_files(files, KEYS, identify), KEYS)


def values(text: str, level: str = Level.USER) -> dict[str, object]:
    """Return the values of one file."""
    return merged(said(text, level))


def test_every_option_of_a_run_is_a_key_or_is_said_not_to_be() -> None:
    """A new option is a key of files by itself; what is none has a reason."""
    options = {option.key for option in RUN_OPTIONS}
    assert options - set(KEYS) == set(NOT_IN_FILES) & options
    assert RUN.options is RUN_OPTIONS
    assert not {RESET_KEY, VERSION_KEY} & options
    assert RESET_KEY == RESET
    assert all(NOT_IN_FILES.values())
    for name in NOT_IN_FILES.keys() & options:
        with pytest.raises(UsageError, match="unknown option"):
            parse([f"--no-{name}", "true"], VERBS, RUN, COMMON)


@pytest.mark.parametrize("key", [key for key in KEYS.values() if key.option], ids=lambda key: key.name)
def test_a_key_means_what_its_option_means(key: Key) -> None:
    """The example of each key gives the run the very value that the words of the command line give it."""
    meant = values(f"{key.name} = {key.example}")[key.name]
    plain = tomllib.loads(f"x = {key.example}")["x"]
    words: list[str] = []
    for member in plain if isinstance(plain, list) else [plain]:
        if isinstance(member, bool):
            words.append(
                key.option if member else f"--no-{key.option.removeprefix('--no-').removeprefix('--')}"
            )
        else:
            words += [key.option, str(member)]
    assert parse([*words, "true"], VERBS, RUN, COMMON).get(key.name) == meant


@pytest.mark.parametrize("key", KEYS.values(), ids=lambda key: key.name)
def test_every_key_has_help_and_an_example(key: Key) -> None:
    """Each key has a sentence, a kind that has types, and an example that is right wherever the key may be."""
    assert key.help.endswith(".")
    assert key.kind in TYPES
    for level in key.levels:
        said(f"{key.name} = {key.example}", level)


@pytest.mark.parametrize("level", FILE_LEVELS)
def test_a_new_file_is_right_as_it_is_and_with_each_of_its_lines(level: str) -> None:
    """The template says nothing, names every key of its level, and each line of it can be taken in."""
    text = commented(KEYS.values(), level)
    assert values(text, level) == {VERSION_KEY: 1}
    names = set()
    blocks = [block for block in text.split("\n\n") if block.startswith("# ")]
    for block in blocks:
        lines = [line for line in block.splitlines() if line.startswith("#") and not line.startswith("# ")]
        taken = "\n".join(line[1:] for line in lines)
        if taken:
            names |= set(values(taken, level))
            said(text.replace("\n".join(lines), taken) if "[[" not in taken else text + taken, level)
    assert names == {key.name for key in KEYS.values() if level in key.levels} - {VERSION_KEY, RESET_KEY}
    assert max(map(len, text.splitlines())) <= 120


def test_the_table_in_the_docs_is_that_of_the_code() -> None:
    """docs/settings.md lists every key as it is; `PYTHONPATH=tests .venv/bin/python -m support.settings` writes it."""
    assert PAGE.read_text() == written()


def test_a_table_is_the_word() -> None:
    """What stands in [[share]] and [[disk]] is what the words of the command line say."""
    text = """
[[share]]
dir = "~/a"
[[share]]
dir = "/b:rw"
rw = true
at = "/b"
[[disk]]
tag = "x"
file = "/y,ro,format=z"
ro = true
[[disk]]
tag = "y"
size = "1G"
[[mount]]
kind = "host-image"
source = "~/z"
at = "/m"
part = 2
[env]
A = "1=2"
B = ""
"""
    assert values(text) == {
        "share": ("~/a:ro", "/b:rw:rw:at=/b"),
        "disk": ("x=/y,ro,format=z,format=raw,ro", "y=size:1G"),
        "mount": ("host-image:~/z,at=/m,part=2",),
        "env": ("A=1=2", "B="),
    }
    assert values('share = ["/a", {dir = "/b"}]') == {"share": ("/a", "/b:ro")}


@pytest.mark.parametrize(
    "text, place, message, hint",
    [
        ("memroy = 1", (1, 1), "there is no setting 'memroy'", "memory?"),
        ('\n\n  boot-log = true', (3, 3), "there is no setting 'boot-log'", "boot_log?"),
        ("xyzzy = 1", (1, 1), "there is no setting 'xyzzy'", "template"),
        ("[run]\nmemory = 1", (1, 1), "there is no setting 'run'", "dry_run?"),
        ("a.b.c = 1", (1, 1), "there is no setting 'a'", "template"),
        ("memory = true", (1, 1), "memory must be a size", "Write memory ="),
        ("memory = [1]", (1, 1), "not a list", "Write memory ="),
        ('memory = "0"', (1, 1), "'0' is not a size", "512M"),
        ("memory = -5", (1, 1), "'-5' is not a size", "512M"),
        ("memory = 1", (1, 1), "'1' is too little", "64 MiB"),
        ("memory = 1.5", (1, 1), "not a number with a fraction", "Write memory"),
        ("cpus = 65", (1, 1), "a machine cannot have 65 CPUs", "between 1 and 64"),
        ('cpus = "2"', (1, 1), "must be a whole number, not a string", "cpus = 2"),
        ("cpus = 0", (1, 1), "'0' is not a positive", "1, 2, 3"),
        ('timings = "x.json"', (1, 1), "the path 'x.json' is relative", "slash"),
        ("timings = 1", (1, 1), "timings must be true, false or a string", "true"),
        ("here = 1", (1, 1), "here must be true or false, not a whole number", "true"),
        ("timeout = nan", (1, 1), "'nan' is not a duration", "30s"),
        ("timeout = 1979-05-27", (1, 1), "not a date or a time", "Write"),
        ('share = "/a"', (1, 1), "share must be a list, not a string", 'share = ['),
        ('share = [\n"/a",\n 3]', (3, 2), "a member of share must be a string or a table", "share = ["),
        ('share = ["a"]', (1, 10), "the path 'a' is relative", "slash"),
        ('share = ["~nobody-of-that-name/a"]', (1, 10), "a user who is not known", "slash"),
        ('share = [""]', (1, 10), "names no directory", "DIR"),
        ('share = ["/a:at=b"]', (1, 10), "'b' is not absolute", "slash"),
        ('[[share]]\nat = "/x"', (1, 1), "a [[share]] lacks 'dir'", "dir, rw, at"),
        ('[[share]]\ndir = "/x"\nrww = true', (3, 1), "[[share]] has no 'rww'", "rw?"),
        ('[[share]]\ndir = "/x"\nrw = "yes"', (3, 1), "rw must be true or false", "template"),
        ('[[share]]\ndir = "/x"\nat = "/a:b"', (1, 1), "it holds a colon", "another"),
        ('[[share]]\ndir = "/x:at=/y"', (1, 1), "named like an option", "at = PATH"),
        ('[[disk]]\ntag = "a=b"\nfile = "/x"', (1, 1), "cannot be a tag", "equals"),
        ('[[disk]]\ntag = "a"\nfile = "/x,ro"', (1, 1), "named like an option", "else"),
        ('[[disk]]\ntag = "a"\nfile = "/x"\nformat = "vhd"', (1, 1), "no format 'vhd'", "qcow2"),
        ('disk = ["a=b"]', (1, 9), "the path 'b' is relative", "slash"),
        ('[[disk]]\ntag = "a"', (1, 1), "needs a file or a size", "one of them"),
        ('[[disk]]\ntag = "a"\nsize = "1G"\nro = true', (1, 1), "an empty disk", "TAG"),
        ('[[mount]]\nkind = "nfs"\nsource = "/x"', (1, 1), "there is no mount 'nfs'", "host-bind"),
        ('[[mount]]\nkind = "ram"\nat = "/x"\nrw = true', (1, 1), "a mount of the kind 'ram' has no 'rw'", ""),
        ('[[mount]]\nkind = "host-bind"\nat = "/x"', (1, 1), "has a source", "ram"),
        ('[[mount]]\nkind = "host-bind"\nsource = "x"', (1, 1), "the path 'x' is relative", "slash"),
        ('include_list = ["x"]', (1, 17), "the path 'x' is relative", "slash"),
        ('include = ["/a=b"]', (1, 12), "the path 'b' is relative", "slash"),
        ('net = "socket:x"', (1, 1), "the path 'x' is relative", "slash"),
        ('net = "lan-party"', (1, 1), "there is no network", "user"),
        ('env = ["=x"]', (1, 8), "names no variable", "NAME"),
        ("[env]\nA = 1", (2, 1), "'A' of env must be a string", 'NAME = "..."'),
        ('[env]\n"A=B" = "x"', (2, 1), "the name holds '='", "NAME"),
        ('workdir = "x"', (1, 1), "not absolute", "slash"),
        ('driver = "xen"', (1, 1), "there is no driver 'xen'", "bwrap"),
        ('accelerator = "hvf"', (1, 1), "there is no accelerator 'hvf'", "tcg"),
        ('devices = "none"', (1, 1), "there is no place for devices 'none'", "bundled"),
        ('insecure_no_jail = ["all"]', (1, 21), "there is no part of a jail 'all'", "seccomp"),
        ('name = "a b"', (1, 1), "cannot be a domain's name", "letters"),
        ('default_profile = "a/b"', (1, 1), "cannot be a profile's name", "letters"),
        ('user = ""', (1, 1), "it is empty", "out"),
        ('env = ["A=\\u0000"]', (1, 8), "NUL byte", "Leave it out"),
        ('profile = "x"', (1, 1), "there is no setting 'profile'", "default_profile?"),
        ('command = "x"', (1, 1), "command cannot be set here", "of a profile"),
        ('reset = ["memroy"]', (1, 10), "there is no setting 'memroy'", "memory?"),
        ("reset = [1]", (1, 10), "a member of reset must be a string", "reset ="),
        ("version = 2", (1, 1), "it is of version 2, and this cloche reads version 1", "newer cloche"),
        ("new_key = 1\nversion = 7", (2, 1), "it is of version 7", "newer cloche"),
        ("version = 0", (1, 1), "there is no version 0", "version = 1"),
        ('version = "1"', (1, 1), "there is no version '1'", "version = 1"),
        ("version = true", (1, 1), "version must be a whole number, not true or false", "version = 1"),
        ("memory = 1G", (1, 11), "expected newline", "template"),
        ("memory = x", (1, 10), "invalid value", "quotes"),
        ("memory = 512\nmemory = 512", (2, 13), "cannot overwrite a value", "once"),
        ("memory", (1, 7), "expected '='", "template"),
        ("memory = [", (1, 11), "invalid value", "quotes"),
        ("\ufeffmemory = 1", (1, 1), "byte order mark", "without one"),
        ("a = 2020-02-30", (1, 5), "invalid date", "template"),
        ("a = " + "[" * 9000, (0, 0), "nested too deeply", "lists"),
        ("a = \0", (1, 5), "invalid value", "quotes"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_place(
    text: str, place: tuple[int, int], message: str, hint: str
) -> None:
    """The first fault has line, column, what is wrong and what to do."""
    _, problems = read(text)
    first = problems[0]
    assert ((first.line, first.column), message in first.message, hint in first.hint) == (
        place,
        True,
        True,
    ), first


def test_all_faults_are_found_in_the_order_of_lines() -> None:
    """One look finds everything that is wrong; what is right beside it is known."""
    settings, problems = read('cpus = 0\nmemory = "512M"\nxxx = 1\nshare = ["/a", 1, "b"]\n')
    assert [(one.line, one.column) for one in problems] == [(1, 1), (3, 1), (4, 16), (4, 19)]
    assert values_of({}, KEYS) == {}
    assert [(entry.key, entry.word) for entry in settings.entries] == [("memory", "512M"), ("share", "/a")]


@pytest.mark.parametrize(
    "key, good, bad",
    [
        ("colour", ["red", "#aabbcc", "#AABBCC"], ["", "redd", "#abc", "#gggggg", "aabbcc"]),
        ("label", ["x", "Büro 1"], ["", " ", "a\\nb", "x" * 65, "\\u001b[31m"]),
        ("grants", ["sound", "rpc:a.B/+1", "usb-hid:1234"], ["", "Sound", "a b", "a:", ":b", "1a", "a:b c"]),
        ("default_profile", ["a-b_c.d1"], ["", "../x", "a/b", "-a", "a" * 64]),
    ],
)
def test_words_of_profiles(key: str, good: list[str], bad: list[str]) -> None:
    """Colours, labels, grants and names have a strict form."""
    level = KEYS[key].levels[-1]
    for word in good:
        said(f'{key} = ["{word}"]' if KEYS[key].is_list else f'{key} = "{word}"', level)
    for word in bad:
        assert read(f'{key} = ["{word}"]' if KEYS[key].is_list else f'{key} = "{word}"', level)[1]


def test_who_may_say_what() -> None:
    """What belongs to a profile is refused elsewhere, and a profile does not choose profiles."""
    assert (
        read('default_profile = "x"', Level.PROFILE)[1][0].hint
        == "It belongs into the settings of system and user."
    )
    assert not read('command = "x"\nargs = ["y"]\nlabel = "z"', Level.PROFILE)[1]


def test_settings_from_elsewhere_open_nothing_unsaid() -> None:
    """Every key but the few known to be harmless is named; so is whatever key comes to be."""
    assert set(KEYS) >= HARMLESS
    text = 'command = "x"\nshare = ["~:rw"]\nnet = "user"\nmemory = "1G"\n[env]\nA = "x"\n'
    assert what_opens(said(text, Level.PROFILE)) == ("env", "net", "share")
    for key in KEYS.values():
        if Level.PROFILE in key.levels:
            opened = what_opens(said(f"{key.name} = {key.example}", Level.PROFILE))
            assert opened == (() if key.name in HARMLESS else (key.name,))


def test_a_switch_may_have_a_value() -> None:
    """What --timings and --timings=FILE say can be said, and turned off again."""
    for text, value in (("true", True), ("false", False), ('"/tmp/t.json"', "/tmp/t.json")):
        assert values(f"timings = {text}") == {"timings": value}


def test_a_colour_is_its_number() -> None:
    """A colour's name and its number are the same value."""
    assert values('colour = "red"', Level.PROFILE) == values('colour = "#CC2222"', Level.PROFILE)


def test_the_stronger_file_wins_and_lists_grow() -> None:
    """Values are replaced, lists are added to, and a member for the same thing takes the weaker one's place."""
    system = said(
        'memory = "512M"\ncpus = 2\nshare = ["/a", "/b:rw"]\nenv = ["A=1", "B=1"]\ninclude = ["/x=/1"]\n'
    )
    user = said('memory = 1024\nshare = ["/a:rw", "/c"]\nenv = ["A=2"]\ninclude = ["/x=/2"]\nhere = true\n')
    profile = said('share = ["/d:at=/b"]\nhere = false\n', Level.PROFILE)
    assert merged(system, user, profile) == {
        "memory": 1024,
        "cpus": 2,
        "share": ("/a:rw", "/c", "/d:at=/b"),
        "env": ("B=1", "A=2"),
        "include": ("/x=/2",),
        "here": False,
    }


def test_reset_forgets_weaker_files_and_not_its_own() -> None:
    """What `reset` names begins anew in the file that says it, wherever in the file it stands."""
    weaker = said('memory = "512M"\nshare = ["/a"]\ncpus = 2\n')
    assert merged(weaker, said('share = ["/b"]\nreset = ["share", "memory"]')) == {
        "share": ("/b",),
        "cpus": 2,
    }
    assert merged(weaker, said('reset = ["share"]'), said('share = ["/c"]'))["share"] == ("/c",)


@given(st.text() | st.booleans() | st.integers(0, 2**40) | st.just("\x9b31m\u202e\x7f"))
def test_what_is_shown_is_what_was_said_and_moves_no_cursor(value: bool | int | str) -> None:
    """A listing's values are TOML of the same meaning, of printable characters alone."""
    shown = in_toml(value)
    assert shown.isprintable()
    assert tomllib.loads(f"x = {shown}")["x"] == value


TOML_VALUES = st.recursive(
    st.booleans().map(str).map(str.lower)
    | st.integers().map(str)
    | st.text("ab/:~=,.G#\\ ", max_size=8).map(lambda text: "'" + text + "'")
    | st.floats(allow_nan=False, allow_infinity=False).map(lambda value: f"{value:f}"),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda words: f"[{', '.join(words)}]")
        | st.dictionaries(st.sampled_from(["dir", "rw", "at", "tag", "file", "x"]), inner, max_size=3).map(
            lambda table: "{" + ", ".join(f"{name} = {value}" for name, value in table.items()) + "}"
        )
    ),
    max_leaves=4,
)


@given(
    st.dictionaries(st.sampled_from([*KEYS, "xxx"]), TOML_VALUES, max_size=6), st.sampled_from(FILE_LEVELS)
)
def test_any_values_are_read_or_told(document: dict[str, str], level: str) -> None:
    """Whatever stands behind a key, it becomes a value that a run can have, or a fault on that key's line."""
    text = "\n".join(f"{name} = {value}" for name, value in document.items())
    settings, problems = read(text, level)
    assert all(1 <= one.line <= len(document) and one.message for one in problems)
    for name, value in merged(settings).items():
        kind = KEYS[name].kind
        members = value if KEYS[name].is_list else (value,)
        assert isinstance(members, tuple)
        assert all(isinstance(one, bool) for one in members) or kind != Kind.SWITCH
        assert all("\0" not in str(one) for one in members)


@given(st.text(max_size=60) | st.text("memory=\"'[]{}\n #.\\u0", max_size=60))
def test_any_text_is_read_or_told(text: str) -> None:
    """Whatever a file holds, reading it ends with what it says or with a fault, and never with an exception."""
    _, problems = read(text)
    for problem in problems:
        assert problem.message
        assert 0 <= problem.line <= text.count("\n") + 1
