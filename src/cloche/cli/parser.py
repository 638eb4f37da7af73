"""The command line's grammar (layer 6): a table of verbs and options, read by a small parser.

Help, the man page and shell completion are generated from the same table (``cli.reference``). argparse is not used:
importing it takes longer than everything else cloche does before the first process starts, and it cannot leave the
words of the program alone without tricks.
"""

from __future__ import annotations

from cloche.errors import UsageError
from cloche.model.options import NOT_IN_FILES, Option
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from cloche.domain.settings import Settled

#: The key of options that were taken back.
RESET = "reset"


class Verb(Record):
    """One verb.

    Attributes:
        handler: ``module:function`` in ``cloche.cli``, imported when the verb is used.
        operands: What follows the options, for the usage line; empty when nothing may follow.
        program: Whether the first operand ends the options: the rest is the program's own.
        settable: Whether files of settings can give its options, which ``--no-NAME`` then takes back.
        verbs: The words that may follow (``kernel build``).
    """

    name: str
    summary: str
    handler: str = ""
    options: tuple[Option, ...] = ()
    operands: str = ""
    program: bool = False
    verbs: tuple[Verb, ...] = ()
    hidden: bool = False
    settable: bool = False


class Parsed(Record):
    """What the parser found.

    Attributes:
        values: By option; ``reset`` holds the names of options that ``--no-NAME`` took back.
        settings: What files of settings say, when they were read; ``values`` are then with them.
    """

    verb: Verb
    path: tuple[str, ...]
    values: dict[str, object]
    operands: tuple[str, ...]
    settings: Settled | None = None

    def get(self, key: str, default: object = None) -> object:
        """Return an option's value, or ``default`` when it was not given."""
        return self.values.get(key, default)


def parse(argv: list[str], verbs: tuple[Verb, ...], default: Verb, common: tuple[Option, ...]) -> Parsed:
    """Read a command line.

    Args:
        argv: Without the program's own name.
        verbs: What may stand first.
        default: The verb meant when something else stands first (``cloche CMD`` is ``cloche run -- CMD``).
        common: Options every verb takes.

    Raises:
        UsageError: An unknown option or verb, a missing or surplus word.
    """
    first = argv[0] if argv else ""
    verb = next((verb for verb in verbs if verb.name == first), None)
    path: tuple[str, ...] = ()
    rest = argv
    if verb is None:
        verb = default
    else:
        path, rest = (verb.name,), argv[1:]
    while verb.verbs and rest and not rest[0].startswith("-"):
        inner = next((inner for inner in verb.verbs if inner.name == rest[0]), None)
        if inner is None:
            hint = _suggest(rest[0], [inner.name for inner in verb.verbs])
            raise UsageError(f"`cloche {' '.join(path)}` knows no {rest[0]!r}", hint=hint)
        verb, path, rest = inner, (*path, inner.name), rest[1:]
    return _parse_options(verb, path, rest, common)


def _parse_options(verb: Verb, path: tuple[str, ...], words: list[str], common: tuple[Option, ...]) -> Parsed:
    known = {name: option for option in (*common, *verb.options) for name in option.names}
    values: dict[str, object] = {}
    operands: list[str] = []
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        if word == "--":
            operands += words[index:]
            break
        if not word.startswith("-") or word == "-":
            operands.append(word)
            if verb.program:
                operands += words[index:]
                break
            continue
        for option, attached in _split(word, known, verb):
            if option.metavar is None and attached is None:
                _store(values, option, option.value)
                continue
            given = attached
            if given is None:
                if index >= len(words):
                    raise UsageError(
                        f"{option.names[-1]} needs a value",
                        hint=f"Write {option.names[-1]} {option.metavar}.",
                    )
                given = words[index]
                index += 1
            try:
                value = option.convert(given)
            except UsageError as error:
                raise UsageError(f"{option.names[-1]}: {error.message}", hint=error.hint) from None
            _store(values, option, value)
    if operands and not verb.operands:
        raise UsageError(
            f"`cloche {' '.join(path)}` takes no argument {operands[0]!r}",
            hint="`cloche help` lists what there is.",
        )
    return Parsed(verb, path, values, tuple(operands))


def _split(word: str, known: dict[str, Option], verb: Verb) -> list[tuple[Option, str | None]]:
    """Take one word apart: ``--name=value``, ``-mVALUE``, or several switches ``-tv``."""
    if word.startswith("--"):
        name, equals, value = word.partition("=")
        option = known.get(name) or _negated(name, known, verb)
        if option is None:
            raise _unknown(name, known, verb)
        if equals and option.metavar is None and not option.optional:
            raise UsageError(f"{name} takes no value", hint=f"Write {name} alone.")
        return [(option, value if equals else None)]
    found: list[tuple[Option, str | None]] = []
    letters = word[1:]
    while letters:
        option = known.get("-" + letters[0])
        if option is None:
            raise _unknown("-" + letters[0], known, verb)
        letters = letters[1:]
        if option.metavar is not None:
            found.append((option, letters or None))
            break
        found.append((option, None))
    return found


def _negated(name: str, known: dict[str, Option], verb: Verb) -> Option | None:
    """Return what ``--no-NAME`` means: a switch is off, and of other options nothing was said before."""
    option = known.get(f"--{name.removeprefix('--no-')}") if name.startswith("--no-") else None
    if option is None or not verb.settable or option not in verb.options or option.key in NOT_IN_FILES:
        return None
    if option.metavar is None:
        return option._replace(value=False, optional="")
    return Option((name,), option.help, repeat=True, dest=RESET, value=option.key)


def _store(values: dict[str, object], option: Option, value: object) -> None:
    if option.key == RESET:
        values.pop(str(value), None)
    if not option.repeat:
        values[option.key] = value
        return
    before = values.get(option.key, ())
    assert isinstance(before, tuple)
    values[option.key] = (*before, value)


def _unknown(name: str, known: dict[str, Option], verb: Verb) -> UsageError:
    hint = _suggest(name, list(known))
    if verb.program:
        hint += " Words of the program itself come after its name."
    return UsageError(f"unknown option {name}", hint=hint)


def _suggest(word: str, candidates: list[str]) -> str:
    # Imported only when something is wrong: difflib is slow to import.
    import difflib

    near = difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
    return f"Did you mean {near[0]}?" if near else "`cloche help` lists what there is."


def parse_signal(word: str) -> int:
    """Read a signal's name, with or without SIG, or its number.

    Raises:
        UsageError: There is no such signal.
    """
    # The enumeration of signals is slow to import, and only this option needs it.
    from signal import Signals

    name = word.upper().removeprefix("SIG")
    if word.isascii() and word.isdigit() and 0 < int(word) <= 64:
        return int(word)
    for signal in Signals:
        if signal.name == f"SIG{name}":
            return int(signal)
    raise UsageError(f"there is no signal {word!r}", hint="Write for example TERM, HUP, USR1 or 9.")
