"""The command line's grammar: options, values, and where the program's own words begin."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.cli.parser import Parsed, Verb, parse
from cloche.cli.verbs import COMMON, RUN, VERBS
from cloche.errors import UsageError
from cloche.model.options import Option, parse_count, parse_duration_s, parse_size_mib

#: A small language of its own, so that the grammar is tested and not the table.
DO = Verb(
    "do",
    "Do it.",
    "do:main",
    (
        Option(("-n", "--number"), "A number.", metavar="N", convert=parse_count),
        Option(("-a", "--add"), "May be repeated.", metavar="WORD", repeat=True),
        Option(("-q", "--quiet"), "A switch."),
        Option(("-x",), "Another."),
        Option(("--colour",), "On.", dest="colour"),
        Option(("--no-colour",), "Off.", dest="colour", value=False),
        Option(("--two-words",), "A name with a dash.", metavar="WORD"),
    ),
    operands="CMD [ARG...]",
    program=True,
    settable=True,
)
LIST = Verb("list", "List.", "set:list_", (Option(("--json",), "JSON."),))
PUT = Verb("put", "Put.", "set:put", operands="A [B]")
SET = Verb("set", "A set of verbs.", verbs=(LIST, PUT))
LANGUAGE = (DO, SET)
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


def read(*words: str) -> Parsed:
    """Parse a line of the small language."""
    return parse(list(words), LANGUAGE, DO, COMMON)


def refusal(*words: str) -> UsageError:
    """Parse a line that must be refused and return the error."""
    with pytest.raises(UsageError) as caught:
        read(*words)
    return caught.value


@pytest.mark.parametrize(
    "words",
    [("--number", "3"), ("--number=3",), ("-n", "3"), ("-n3",), ("-qn3",), ("-q", "-n", "3"), ("-xqn", "3")],
)
def test_a_value_is_attached_or_the_next_word(words: tuple[str, ...]) -> None:
    """Every usual way of writing an option's value gives the same value."""
    assert read(*words, "prog").get("number") == 3


def test_combined_switches() -> None:
    """Switches of one letter may share a dash."""
    parsed = read("-xq", "prog")
    assert (parsed.get("x"), parsed.get("quiet")) == (True, True)


def test_what_files_say_can_be_taken_back() -> None:
    """--no-NAME turns a switch off, and forgets the value of every other option, those before it too."""
    assert read("--no-quiet", "p").values == {"quiet": False}
    assert read("--no-number", "p").values == {"reset": ("number",)}
    assert read("-n", "3", "--no-number", "--no-two-words", "p").values == {"reset": ("number", "two_words")}
    assert read("-a", "x", "--no-add", "-a", "y", "p").values == {"reset": ("add",), "add": ("y",)}
    assert "unknown option --no-colours" in refusal("--no-colours", "p").message
    assert "--no-number takes no value" in refusal("--no-number=3", "p").message
    for word in ("--no-", "--no-no-number", "--no-help", "--no-n"):
        assert "unknown option" in refusal(word, "p").message


def test_only_what_files_can_set_is_taken_back() -> None:
    """A verb whose options no file gives knows no --no-NAME."""
    with pytest.raises(UsageError, match="unknown option --no-json"):
        parse(["set", "list", "--no-json"], LANGUAGE, DO, COMMON)


def test_a_switch_and_its_opposite() -> None:
    """Two options may set one value; the later wins, and without both there is none."""
    assert read("--colour", "--no-colour", "p").get("colour") is False
    assert read("--no-colour", "--colour", "p").get("colour") is True
    assert read("p").get("colour") is None


def test_repeated_options() -> None:
    """A repeatable option keeps every value in order, another one the last."""
    parsed = read("-a", "1", "--add=2", "-a3", "-n1", "-n2", "p")
    assert parsed.get("add") == ("1", "2", "3")
    assert parsed.get("number") == 2


def test_names_with_dashes_are_found_with_underscores() -> None:
    """The value of --two-words is kept as two_words."""
    assert read("--two-words", "x", "p").get("two_words") == "x"


def test_a_value_may_look_like_an_option() -> None:
    """The word after an option that takes a value is its value, whatever it looks like."""
    assert read("--add", "--quiet", "-a", "--", "p").get("add") == ("--quiet", "--")


def test_an_attached_value_keeps_its_equals_signs_and_may_be_empty() -> None:
    """Only the first equals sign ends the option's name."""
    assert read("--add=a=b=", "--two-words=", "p").values == {"add": ("a=b=",), "two_words": ""}


@given(st.lists(WORDS, max_size=6))
def test_the_programs_words_are_untouched(words: list[str]) -> None:
    """Whatever follows the program's name belongs to the program."""
    for line in (["do", "-q", "prog", *words], ["-q", "prog", *words], ["do", "-q", "--", "prog", *words]):
        parsed = parse(line, LANGUAGE, DO, COMMON)
        assert parsed.operands == ("prog", *words)
        assert parsed.values == {"quiet": True}


@given(st.lists(WORDS, max_size=6))
def test_after_two_dashes_everything_is_an_operand(words: list[str]) -> None:
    """Two dashes end the options, also in front of a program whose name begins with a dash."""
    assert parse(["do", "--", *words], LANGUAGE, DO, COMMON).operands == tuple(words)
    assert parse(["--", "set", *words], LANGUAGE, DO, COMMON).operands == ("set", *words)


@given(st.lists(st.one_of(WORDS, st.sampled_from(["-n", "-q", "--add", "--", "set", "list", "-", "-n1"]))))
def test_any_line_is_read_or_refused(words: list[str]) -> None:
    """Every line gives a result or a usage error with a sentence, never another exception."""
    message = ""
    try:
        assert parse(words, LANGUAGE, DO, COMMON).verb in (DO, SET, LIST, PUT)
    except UsageError as error:
        message = error.message
    assert not message.endswith(".")


def test_a_lone_dash_is_a_word() -> None:
    """A dash alone is no option (it usually means standard input)."""
    assert read("set", "put", "-", "x").operands == ("-", "x")


def test_without_a_verb_the_default_is_meant() -> None:
    """A first word that is no verb is the default verb's, with no path to show for it."""
    parsed = read("prog", "list")
    assert (parsed.verb, parsed.path, parsed.operands) == (DO, (), ("prog", "list"))
    assert read("").operands == ("",)


def test_verbs_of_verbs() -> None:
    """A verb of a verb is found, with options and operands in any order."""
    assert read("set", "list", "--json").path == ("set", "list")
    parsed = read("set", "put", "a", "-v", "b")
    assert (parsed.operands, parsed.values) == (("a", "b"), {"verbose": True})
    assert read("set").verb is SET
    assert read("set", "-h").get("help") is True


def test_surplus_words_are_refused() -> None:
    """A verb that takes no operand names the first one it got."""
    assert "'x'" in refusal("set", "list", "x", "y").message


@pytest.mark.parametrize(
    "words, part",
    [
        (("--quiett", "p"), "unknown option --quiett"),
        (("--quie=1", "p"), "unknown option --quie"),
        (("-qz", "p"), "unknown option -z"),
        (("--quiet=1", "p"), "--quiet takes no value"),
        (("--number",), "--number needs a value"),
        (("-qn",), "--number needs a value"),
        (("-n", "three", "p"), "--number: 'three' is not a positive whole number"),
        (("set", "lisst"), "`cloche set` knows no 'lisst'"),
    ],
)
def test_what_is_wrong_is_named(words: tuple[str, ...], part: str) -> None:
    """A refusal names the word that is wrong."""
    assert part in refusal(*words).message


def test_near_misses_get_a_suggestion() -> None:
    """The hint names the option or verb that was probably meant."""
    assert "--quiet" in str(refusal("--quit", "p").hint)
    assert "list" in str(refusal("set", "lisst").hint)
    assert "cloche help" in str(refusal("--zzzzzzzz", "p").hint)


def test_the_hint_says_where_the_programs_options_belong() -> None:
    """Whoever writes the program's options in front of its name is told so."""
    assert "after its name" in str(refusal("-l", "ls").hint)


@pytest.mark.parametrize(
    "word, mib",
    [
        ("1", 1),
        ("512", 512),
        ("512M", 512),
        ("512m", 512),
        ("512MB", 512),
        ("512MiB", 512),
        ("2G", 2048),
        ("2gib", 2048),
        ("1T", 1 << 20),
        ("2048K", 2),
        ("1K", 1),
    ],
)
def test_sizes(word: str, mib: int) -> None:
    """A size is MiB unless its unit says otherwise, and at least one."""
    assert parse_size_mib(word) == mib


@pytest.mark.parametrize(
    "word",
    [
        "",
        "0",
        "0G",
        "G",
        "-1",
        "+1",
        "1.5G",
        "1 G",
        " 1",
        "1_0",
        "512B",
        "1iB",
        "1GG",
        "1KM",
        "²",
        "٣",
        "1e3",
        "9" * 13,
    ],
)
def test_what_is_no_size(word: str) -> None:
    """Anything that is not a positive whole number with a unit of memory is refused."""
    with pytest.raises(UsageError, match="is not a size"):
        parse_size_mib(word)


@pytest.mark.parametrize(
    "word, seconds",
    [
        ("90", 90.0),
        ("1.5", 1.5),
        (".5s", 0.5),
        ("90s", 90.0),
        ("5m", 300.0),
        ("1.5h", 5400.0),
        ("2d", 172800.0),
    ],
)
def test_durations(word: str, seconds: float) -> None:
    """A duration is seconds unless its unit says otherwise."""
    assert parse_duration_s(word) == seconds


@pytest.mark.parametrize(
    "word",
    [
        "",
        "s",
        "0",
        "0s",
        "-1",
        "+1",
        "nan",
        "inf",
        "infs",
        "1e3",
        "1_0",
        " 1",
        "1 m",
        "1.2.3",
        ".",
        "٣",
        "1w",
        "9" * 12,
    ],
)
def test_what_is_no_duration(word: str) -> None:
    """Anything that is not a positive number with a unit of time is refused."""
    with pytest.raises(UsageError, match="is not a duration"):
        parse_duration_s(word)


@pytest.mark.parametrize("word", ["", "0", "-1", "1.0", "one", "²", "9" * 10, "9" * 5000])
def test_what_is_no_count(word: str) -> None:
    """Anything that is not a positive whole number of a sensible length is refused."""
    with pytest.raises(UsageError, match="not a positive whole number"):
        parse_count(word)


@given(st.text(max_size=8))
def test_values_are_read_or_refused(word: str) -> None:
    """No text makes a reader of values raise anything but a usage error, or return what is not positive."""
    for convert in (parse_size_mib, parse_count, parse_duration_s):
        try:
            assert convert(word) > 0
        except UsageError:
            continue


def all_verbs(verbs: tuple[Verb, ...]) -> list[Verb]:
    """Return the verbs and the verbs below them."""
    return [inner for verb in verbs for inner in (verb, *all_verbs(verb.verbs))]


@pytest.mark.parametrize("verb", all_verbs(VERBS), ids=lambda verb: verb.name)
def test_no_two_options_of_a_verb_share_a_name(verb: Verb) -> None:
    """Every option can be reached: no other one of its verb, or of all verbs, has its name."""
    names = [name for option in (*verb.options, *COMMON) for name in option.names]
    assert len(names) == len(set(names))


def test_a_value_that_may_be_left_out_stands_behind_an_equals_sign() -> None:
    """`--timings` alone is a switch, and the next word is the program; `--timings=` is a mistake."""
    for words, value in (([], None), (["--timings"], True), (["--timings=file=x"], "file=x")):
        parsed = parse([*words, "prog"], VERBS, RUN, COMMON)
        assert (parsed.get("timings"), parsed.operands) == (value, ("prog",))
    assert parse(["--timings=file", "--no-timings", "prog"], VERBS, RUN, COMMON).get("timings") is False
    for wrong, said in (("--timings=", "no file was named"), ("--no-timings=file", "takes no value")):
        with pytest.raises(UsageError, match=said):
            parse([wrong, "prog"], VERBS, RUN, COMMON)


SAMPLES = {"SIZE": "2G", "N": "2", "TIME": "5m"}


@pytest.mark.parametrize(
    "option, name", [(option, name) for option in (*RUN.options, *COMMON) for name in option.names]
)
def test_every_option_of_run_is_read(option: Option, name: str) -> None:
    """Each name of each option sets its value and leaves the program alone."""
    value = [SAMPLES.get(option.metavar, "word")] if option.metavar else []
    parsed = parse([name, *value, "prog", name], VERBS, RUN, COMMON)
    assert parsed.operands == ("prog", name)
    assert list(parsed.values) == [option.key]


def test_verbs_have_a_handler_or_verbs() -> None:
    """Every verb does something, and says in a sentence what."""
    for verb in all_verbs(VERBS):
        assert bool(verb.handler) != bool(verb.verbs), verb.name
        assert verb.summary.endswith("."), verb.name
        assert all(option.help.endswith(".") for option in verb.options), verb.name


def test_handlers_exist() -> None:
    """Every handler named in the table can be imported and called."""
    from importlib import import_module

    for verb in all_verbs(VERBS):
        if verb.handler:
            module, _, function = verb.handler.partition(":")
            assert callable(getattr(import_module(f"cloche.cli.{module}"), function)), verb.handler
