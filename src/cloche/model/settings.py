"""What can stand in ``cloche.toml`` (layer 1, pure): every option of a run, and what only files can say."""

from __future__ import annotations

from cloche.errors import UsageError
from cloche.model.options import (
    NOT_IN_FILES,
    RUN_OPTIONS,
    Level,
    Option,
    parse_count,
    parse_duration_s,
    parse_number,
    parse_size_mib,
    parse_time_s,
)
from cloche.model.profile import KEPT_BYTES, KEPT_STARTS
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable

#: The version of the format that this cloche reads. A file without one is of version 1.
VERSION = 1
#: The keys that are about the file and not about runs.
VERSION_KEY, RESET_KEY = "version", "reset"


FILE_LEVELS = (Level.SYSTEM, Level.USER, Level.PROFILE)


class Kind:
    """What a value is in a file, in the words of an error."""

    SWITCH = "true or false"
    TEXT = "a string"
    COUNT = "a whole number"
    SIZE = 'a size ("512M", "2G") or a number of MiB'
    DURATION = 'a duration ("30s", "5m") or a number of seconds'
    SWITCH_OR_TEXT = "true, false or a string"


#: The types that a value may have in a file.
TYPES: dict[str, tuple[type, ...]] = {
    Kind.SWITCH: (bool,),
    Kind.TEXT: (str,),
    Kind.COUNT: (int,),
    Kind.SIZE: (str, int),
    Kind.DURATION: (str, int, float),
    Kind.SWITCH_OR_TEXT: (bool, str),
}


class Field(Record):
    """One key of a table that stands for a word, as in ``[[share]]``; a new file shows it if it has an ``example``."""

    name: str
    example: str = ""
    kind: str = Kind.TEXT
    required: bool = False


class Key(Record):
    """One key.

    Attributes:
        name: Also the name under which the command line's parser keeps the value.
        kind: One of Kind; of a list, that of its members.
        help: One sentence.
        option: How it is called on the command line; empty for what only files can say.
        metavar: The form of a word, None for a switch.
        is_list: Whether it holds several.
        convert: Reads a word; raises UsageError.
        levels: Whose settings may have it.
        default: What holds when nobody says anything, in words; empty for nothing.
        example: A value in TOML.
        fields: What a table that stands for a word is made of; empty where only words can be written.
        pairs: Whether a table of names and values can stand for the list (``[env]``).
    """

    name: str
    kind: str
    help: str
    option: str = ""
    metavar: str | None = None
    is_list: bool = False
    convert: Callable[[str], object] = str
    levels: tuple[str, ...] = FILE_LEVELS
    default: str = ""
    example: str = ""
    fields: tuple[Field, ...] = ()
    pairs: bool = False


class Entry(Record):
    """One thing that a file says.

    Attributes:
        key: The key's name.
        word: Its value, or one of a list, as the command line would have it; ``true`` or ``false`` for a switch.
        member: Its place in the list, or its name among pairs; None where there is no list.
    """

    key: str
    word: str
    member: int | str | None = None


class Settings(Record):
    """What one file says."""

    level: str
    path: str
    entries: tuple[Entry, ...] = ()


_KINDS: dict[Callable[[str], object], str] = {
    parse_count: Kind.COUNT,
    parse_number: Kind.COUNT,
    parse_size_mib: Kind.SIZE,
    parse_duration_s: Kind.DURATION,
    parse_time_s: Kind.DURATION,
}
_DEFAULTS = {
    "memory": "1G",
    "cpus": "1",
    "driver": "qemu",
    "devices": "process",
    "net": "none",
    "log_size": "16M",
    "pool": "true",
}
_EXAMPLES = {
    "name": '"web"',
    "share": '["~/papers", "~/src:rw"]',
    "include": '["/etc/app.conf=~/app.conf"]',
    "include_list": '["~/.config/app/copies"]',
    "mount": '["host-image:~/data.img,at=/data", "ram:at=/scratch,size=1G"]',
    "root": '"/srv/debian13"',
    "disk": '["data=~/data.img,ro"]',
    "net": '"user"',
    "user": '"nobody"',
    "env": '["EDITOR", "LANG=C"]',
    "workdir": '"/tmp"',
    "driver": '"qemu"',
    "accelerator": '"tcg"',
    "kernel": '"small"',
    "devices": '"process"',
    "insecure_no_jail": '["cgroups"]',
    "cpus": "2",
    "pids": "500",
    "log_size": '"64M"',
    "boot_timeout": '"60s"',
    "pool": "false",
}
_KIND_EXAMPLES = {
    Kind.SWITCH: "true",
    Kind.COUNT: "1",
    Kind.SIZE: '"2G"',
    Kind.DURATION: '"30s"',
    Kind.SWITCH_OR_TEXT: "true",
    Kind.TEXT: '"..."',
}
_FIELDS = {
    "share": (
        Field("dir", '"~/src"', required=True),
        Field("rw", "true", Kind.SWITCH),
        Field("at", '"/src"'),
    ),
    "disk": (
        Field("tag", '"data"', required=True),
        Field("file", '"~/data.img"'),
        Field("size"),
        Field("format", '"raw"'),
        Field("ro", "true", Kind.SWITCH),
    ),
    "mount": (
        Field("kind", '"host-image"', required=True),
        Field("source", '"~/data.img"'),
        Field("at", '"/data"'),
        Field("rw", "true", Kind.SWITCH),
        Field("format", '"raw"'),
        Field("fs", '"ext4"'),
        Field("part", "1", Kind.COUNT),
        Field("size"),
    ),
}
_PAIRS = ("env", "include")
#: What a profile cannot say, because it is asked before there is one.
_BEFORE_PROFILES = ("temporary",)

#: Keys that neither show a run anything of the host's nor weaken what holds it, whatever their values: a profile that
#: comes from elsewhere may bring them. What is new is not among them until somebody has thought about it.
HARMLESS = frozenset(
    (
        VERSION_KEY,
        "args",
        "boot_timeout",
        "colour",
        "command",
        "cpus",
        "hwrng",
        "label",
        "memory",
        "pids",
        "privileged",
        "timeout",
        "tty",
        "user",
        "workdir",
    )
)

#: Names that can be given instead of a number.
COLOURS = {
    "red": "#cc2222",
    "orange": "#e07b00",
    "yellow": "#e0c000",
    "green": "#2e9e3f",
    "blue": "#2a62c9",
    "purple": "#7d3fb2",
    "grey": "#888888",
    "black": "#202020",
}
_LONGEST_LABEL = 64
_LONGEST_GRANT = 255
_GRANT_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-.")


def parse_colour(word: str) -> str:
    """Read a colour: one of COLOURS or ``#rrggbb``; returns the latter.

    Raises:
        UsageError: It is none.
    """
    number = COLOURS.get(word, word).lower()
    if len(number) != 7 or number[0] != "#" or not set(number[1:]) <= set("0123456789abcdef"):
        raise UsageError(f"{word!r} is no colour", hint=f"Write #rrggbb or one of {', '.join(COLOURS)}.")
    return number


def parse_label(word: str) -> str:
    """Read what windows and listings call a profile beside its name.

    Raises:
        UsageError: It is empty, long, or not plain text.
    """
    if not word.strip() or len(word) > _LONGEST_LABEL or not word.isprintable():
        raise UsageError(
            f"{word!r} cannot be a label", hint=f"Take up to {_LONGEST_LABEL} characters that can be printed."
        )
    return word


def parse_grant(word: str) -> str:
    """Read a grant: ``NAME`` or ``NAME:WHAT``; nothing acts on it yet.

    Raises:
        UsageError: It is malformed.
    """
    name, colon, what = word.partition(":")
    plain = what.isprintable() and " " not in what and bool(what) == bool(colon)
    if not (name[:1].isalpha() and set(name) <= _GRANT_LETTERS and plain and len(word) <= _LONGEST_GRANT):
        raise UsageError(
            f"{word!r} is no grant",
            hint="Write NAME or NAME:WHAT, the name in small letters, without blanks.",
        )
    return word


_OF_PROFILES = (Level.PROFILE,)
_OF_OTHERS = (Level.SYSTEM, Level.USER)
_OWN = (
    Key(
        VERSION_KEY,
        Kind.COUNT,
        "The version of this format.",
        convert=parse_count,
        default=str(VERSION),
        example=str(VERSION),
    ),
    Key(
        RESET_KEY,
        Kind.TEXT,
        "Keys whose values of weaker settings are forgotten; --no-KEY on the command line.",
        is_list=True,
        metavar="KEY",
        example='["share"]',
    ),
    Key(
        "default_profile",
        Kind.TEXT,
        "The profile of every run that names none.",
        metavar="NAME",
        levels=_OF_OTHERS,
        example='"default"',
    ),
    Key(
        "kept_starts",
        Kind.COUNT,
        "How many starts of a profile can be gone back to; 0 for none.",
        metavar="N",
        convert=parse_number,
        default=str(KEPT_STARTS),
        example="10",
    ),
    Key(
        "kept_room",
        Kind.SIZE,
        "How much room what is kept for that may take, at most.",
        metavar="SIZE",
        convert=parse_size_mib,
        default=f"{KEPT_BYTES >> 30}G",
        example='"8G"',
    ),
    Key(
        "command",
        Kind.TEXT,
        "What `cloche -p NAME` alone starts.",
        metavar="CMD",
        levels=_OF_PROFILES,
        example='"firefox"',
    ),
    Key(
        "args",
        Kind.TEXT,
        "The arguments of the command.",
        is_list=True,
        metavar="ARG",
        levels=_OF_PROFILES,
        example='["--private-window"]',
    ),
    Key(
        "colour",
        Kind.TEXT,
        f"The colour of the profile: {', '.join(COLOURS)} or #rrggbb.",
        metavar="COLOUR",
        convert=parse_colour,
        levels=_OF_PROFILES,
        example='"blue"',
    ),
    Key(
        "label",
        Kind.TEXT,
        "What the profile is called beside its name.",
        metavar="TEXT",
        convert=parse_label,
        levels=_OF_PROFILES,
        example='"Work"',
    ),
    Key(
        "grants",
        Kind.TEXT,
        "What the profile's programs may ask for; nothing acts on it yet.",
        is_list=True,
        metavar="NAME[:WHAT]",
        convert=parse_grant,
        levels=_OF_PROFILES,
        example='["clipboard"]',
    ),
)


def all_keys() -> dict[str, Key]:
    """Return every key by its name: those of files first, then the options of a run in their order."""
    keys = {key.name: key for key in _OWN}
    for option in RUN_OPTIONS:
        if option.key not in NOT_IN_FILES and option.key not in keys:
            keys[option.key] = _from_option(option)
    return keys


def _from_option(option: Option) -> Key:
    name = option.key
    kind = _KINDS.get(option.convert, Kind.TEXT)
    if option.metavar is None:
        kind = Kind.SWITCH_OR_TEXT if option.optional else Kind.SWITCH
    return Key(
        name,
        kind,
        option.help,
        option=option.names[-1],
        metavar=option.metavar or option.optional or None,
        is_list=option.repeat,
        convert=option.convert,
        levels=_OF_OTHERS if name in _BEFORE_PROFILES else FILE_LEVELS,
        default=_DEFAULTS.get(name, ""),
        example=_EXAMPLES.get(name)
        or (f"[{_KIND_EXAMPLES[kind]}]" if option.repeat else _KIND_EXAMPLES[kind]),
        fields=_FIELDS.get(name, ()),
        pairs=name in _PAIRS,
    )
