"""Help, manual page and shell completion (layer 6), generated from the table in ``cli.verbs``."""

from __future__ import annotations

import sys

from cloche import __version__
from cloche.cli.verbs import COMMON, RUN, VERBS
from cloche.errors import UsageError
from cloche.model.options import NOT_IN_FILES
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.parser import Parsed, Verb
    from cloche.model.options import Option

_EXIT_STATUS = (
    ("N", "the program's own status"),
    ("128+N", "the program was ended by signal N"),
    ("1", "of `cloche audit`: a process is not held as its policy says"),
    ("124", "the time limit has passed"),
    ("125", "cloche itself failed"),
    ("126", "the program cannot be executed, or it is not allowed"),
    ("127", "the program was not found"),
)

_EXAMPLES = (
    ("cloche python3 -c 'print(1)'", "run a program of this machine in a machine of its own"),
    ("cloche --here make", "let it see and change the working directory"),
    ("cloche --share ~/papers pdftotext ~/papers/a.pdf -", "let it read one directory"),
    ("curl -s https://example.org | cloche wc -c", "pipe into and out of it"),
    ("cloche -m 2G -c 2 --timeout 5m -- ./bench", "limit it"),
    ("cloche run -- top", "run a program that is named like a verb"),
)

_FILES = (
    ("/etc/cloche/cloche.toml", "settings of the system, the weakest"),
    ("cloche/cloche.toml in $XDG_CONFIG_DIRS", "settings of the system, too"),
    ("~/.config/cloche/cloche.toml", "your settings, below $XDG_CONFIG_HOME where that is set"),
    (
        "~/.local/share/cloche/profiles/NAME",
        "a profile: its settings and its disk, below $XDG_DATA_HOME where that is set",
    ),
)
#: Of the verb whose options files of settings can give.
_SETTABLE = (
    "Files of settings can give each of these options to every run (`cloche settings --help`). --no-NAME takes one"
    " back: a switch is off, and of another option nothing was said before."
)


def overview() -> str:
    """Return the text of ``cloche --help``."""
    lines = [
        "usage: cloche [OPTION...] CMD [ARG...]",
        "       cloche VERB [OPTION...] [ARG...]",
        "",
        "Runs CMD, a program of this machine, inside a virtual machine of its own.",
        "",
        "verbs:",
    ]
    lines += [f"  {verb.name:<12}{verb.summary}" for verb in VERBS if not verb.hidden]
    lines += ["", "options of run (`cloche help run` explains them):"]
    lines += _wrap(" ".join(_brief(option) for option in RUN.options))
    lines += ["", "examples:"]
    for command, meaning in _EXAMPLES:
        lines += [f"  {command}", f"      {meaning}"]
    return "\n".join(lines) + "\n"


def verb_help(path: tuple[str, ...]) -> str:
    """Return the help of one verb.

    Raises:
        UsageError: There is no such verb.
    """
    verb = _find(path)
    lines = [f"usage: {_usage(verb, path)}", "", verb.summary]
    if verb.verbs:
        lines += ["", "verbs:"] + [f"  {inner.name:<12}{inner.summary}" for inner in verb.verbs]
    lines += ["", "options:"]
    for option in (*verb.options, *COMMON):
        lines.append(f"  {_full(option)}")
        lines += _wrap(option.help, indent=10)
    if verb.settable:
        lines += ["", *_wrap(_SETTABLE)]
    if verb.program:
        lines += ["", "exit status:"] + [f"  {status:<8}{meaning}" for status, meaning in _EXIT_STATUS]
    return "\n".join(lines) + "\n"


def help_(parsed: Parsed) -> int:
    """Handle ``cloche help [VERB]``."""
    sys.stdout.write(verb_help(parsed.operands) if parsed.operands else overview())
    return 0


def _find(path: tuple[str, ...]) -> Verb:
    verbs: tuple[Verb, ...] = VERBS
    found = None
    for word in path:
        found = next((verb for verb in verbs if verb.name == word), None)
        if found is None:
            raise UsageError(f"there is no verb {' '.join(path)!r}", hint="`cloche help` lists the verbs.")
        verbs = found.verbs
    assert found is not None
    return found


def _usage(verb: Verb, path: tuple[str, ...]) -> str:
    words = ["cloche", *path]
    if verb.options or verb.verbs:
        words.append("VERB" if verb.verbs else "[OPTION...]")
    if verb.program:
        words.append("[--]")
    if verb.operands:
        words.append(verb.operands)
    return " ".join(words)


def _full(option: Option) -> str:
    return ", ".join(option.names) + _value(option)


def _brief(option: Option) -> str:
    return f"[{option.names[-1]}{_value(option)}]".replace(" ", "\0")


def _value(option: Option) -> str:
    return f"[={option.optional}]" if option.optional else f" {option.metavar}" if option.metavar else ""


def _wrap(text: str, *, indent: int = 2, width: int = 96) -> list[str]:
    lines, line = [], " " * indent
    for word in text.split(" "):
        if len(line) + len(word) > width and line.strip():
            lines.append(line.rstrip())
            line = " " * indent
        line += word.replace("\0", " ") + " "
    return [*lines, line.rstrip()]


def man_page(parsed: Parsed) -> int:
    """Handle ``cloche man``: the manual page in man(7) macros."""
    del parsed
    out = [
        f'.TH CLOCHE 1 "" "cloche {__version__}" "User Commands"',
        ".SH NAME",
        r"cloche \- run a program of this machine inside a virtual machine of its own",
        ".SH SYNOPSIS",
        ".B cloche",
        r"[\fIOPTION\fR...] \fICMD\fR [\fIARG\fR...]",
        ".br",
        ".B cloche",
        r"\fIVERB\fR [\fIOPTION\fR...] [\fIARG\fR...]",
        ".SH DESCRIPTION",
        "The program runs on its own kernel with a fresh home directory. It sees the host's programs and libraries",
        "read-only, and nothing else of the host but what is shared with it. Standard streams, signals, the terminal",
        "and the exit status behave as without cloche.",
    ]
    for verb, path in _leaves(VERBS):
        out += [f'.SS "{_roff(_usage(verb, path))}"', _roff(verb.summary)]
        out += _roff_options(verb.options)
        if verb.settable:
            out += [".P", _roff(_SETTABLE)]
    out += [".SH OPTIONS OF EVERY VERB", *_roff_options(COMMON)]
    out += [".TP", rf"\fB{_roff('--version')}\fR", "Print the version; only as the first word."]
    out += [".SH FILES"]
    for place, meaning in _FILES:
        out += [".TP", rf"\fI{_roff(place)}\fR", _roff(meaning)]
    out += [".SH EXIT STATUS"]
    for status, meaning in _EXIT_STATUS:
        out += [".TP", f".B {status}", _roff(meaning)]
    out += [".SH EXAMPLES"]
    for command, meaning in _EXAMPLES:
        out += [".TP", rf"\fB{_roff(command)}\fR", _roff(meaning)]
    sys.stdout.write("\n".join(out) + "\n")
    return 0


def _leaves(verbs: tuple[Verb, ...], path: tuple[str, ...] = ()) -> list[tuple[Verb, tuple[str, ...]]]:
    found: list[tuple[Verb, tuple[str, ...]]] = []
    for verb in verbs:
        if verb.hidden:
            continue
        here = (*path, verb.name)
        found += _leaves(verb.verbs, here) if verb.verbs else [(verb, here)]
    return found


def _roff_options(options: tuple[Option, ...]) -> list[str]:
    lines = []
    for option in options:
        lines += [".TP", rf"\fB{_roff(_full(option))}\fR", _roff(option.help)]
    return lines


def _roff(text: str) -> str:
    for char, escape in (
        ("\\", "\\e"),
        ("-", "\\-"),
        ("'", "\\(aq"),
        ('"', "\\(dq"),
        ("`", "\\(ga"),
        ("~", "\\(ti"),
    ):
        text = text.replace(char, escape)
    return "\\&" + text if text.startswith(".") else text


def completion(parsed: Parsed) -> int:
    """Handle ``cloche completion SHELL``.

    Raises:
        UsageError: A shell there is no completion for.
    """
    if len(parsed.operands) != 1:
        raise UsageError("`cloche completion` needs one shell's name", hint="Choose bash, zsh or fish.")
    shell = parsed.operands[0]
    scripts = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    if shell not in scripts:
        raise UsageError(f"there is no completion for {shell!r}", hint="Choose bash, zsh or fish.")
    sys.stdout.write(scripts[shell]())
    return 0


def _long_names(options: tuple[Option, ...]) -> str:
    return " ".join(name for option in options for name in option.names if name.startswith("--"))


def _taken_back() -> str:
    """Return every --no-NAME of a run; too many to be offered before one has begun to write it."""
    names = (option.names[-1] for option in RUN.options if option.key not in NOT_IN_FILES)
    return " ".join(name if name.startswith("--no-") else f"--no-{name[2:]}" for name in names)


def _words_after(verb: Verb) -> str:
    """Return what may follow a verb: its verbs or the choices of its operand, and its options."""
    choices = " ".join(inner.name for inner in verb.verbs)
    if verb.operands == "[VERB]":
        choices = _verb_names()
    elif "|" in verb.operands:
        choices = verb.operands.replace("|", " ")
    return f"{choices} {_long_names((*verb.options, *COMMON))}".strip()


def _verb_names() -> str:
    return " ".join(verb.name for verb in VERBS if not verb.hidden)


def _bash() -> str:
    cases = ""
    for verb in VERBS:
        if verb.hidden or verb.program:
            continue
        for inner in verb.verbs:
            cases += f'    "{verb.name} {inner.name}") words="{_words_after(inner)}";;\n'
        cases += f'    "{verb.name} "*) words="{_words_after(verb)}";;\n'
    taking = "|".join(name for option in RUN.options if option.metavar for name in option.names)
    options = f"{_long_names((*RUN.options, *COMMON))} --version"
    return f"""# bash completion for cloche; source it or put it into bash_completion.d
_cloche() {{
  local cur="${{COMP_WORDS[COMP_CWORD]}}" verb="" inner="" words="" i=1
  COMPREPLY=()
  [ "$COMP_CWORD" -gt 1 ] && verb="${{COMP_WORDS[1]}}"
  [ "$COMP_CWORD" -gt 2 ] && inner="${{COMP_WORDS[2]}}"
  case "$verb $inner" in
{cases}  esac
  if [ -n "$words" ]; then
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
    return
  fi
  [ "$verb" = run ] && i=2
  while [ "$i" -lt "$COMP_CWORD" ]; do
    case "${{COMP_WORDS[i]}}" in
      {taking})
        # The shell has cut --option=value, and a value with colons, into words of their own.
        i=$((i + 1))
        [ "${{COMP_WORDS[i]}}" = "=" ] || i=$((i + 1))
        while [[ "${{COMP_WORDS[i]}}" == [=:]* ]]; do i=$((i + 2)); done;;
      --) i=$((i + 1)); break;;
      -*) i=$((i + 1));;
      *) break;;
    esac
  done
  if [ "$i" -gt "$COMP_CWORD" ]; then
    return  # an option's value: the shell offers file names
  elif [ "$i" -lt "$COMP_CWORD" ]; then
    if declare -F _command_offset >/dev/null; then _command_offset "$i"; fi
  elif [[ "$cur" == --no-* ]]; then
    COMPREPLY=($(compgen -W "{_taken_back()}" -- "$cur"))
  elif [[ "$cur" == -* ]]; then
    COMPREPLY=($(compgen -W "{options}" -- "$cur"))
  else
    [ "$i" -eq 1 ] && words="{_verb_names()}"
    COMPREPLY=($(compgen -W "$words" -- "$cur") $(compgen -c -- "$cur"))
  fi
}}
complete -o default -F _cloche cloche
"""


def _zsh() -> str:
    return "#compdef cloche\nautoload -U +X bashcompinit && bashcompinit\n" + _bash()


def _fish() -> str:
    lines = ["# fish completion for cloche"]
    for verb in VERBS:
        if verb.hidden:
            continue
        lines.append(
            f"complete -c cloche -n __fish_use_subcommand -a {verb.name} -d {_fish_word(verb.summary)}"
        )
        for inner in verb.verbs:
            lines.append(_fish_line(verb.name, f" -a {inner.name} -d {_fish_word(inner.summary)}"))
        if not verb.program:
            inner_options = tuple(option for inner in verb.verbs for option in inner.options)
            lines += [
                _fish_line(verb.name, _fish_option(option)) for option in (*verb.options, *inner_options)
            ]
    lines += [
        f"complete -c cloche -n __fish_use_subcommand{_fish_option(option)}"
        for option in (*RUN.options, *COMMON)
    ]
    return "\n".join(lines) + "\n"


def _fish_line(verb: str, rest: str) -> str:
    return f"complete -c cloche -n '__fish_seen_subcommand_from {verb}'{rest}"


def _fish_option(option: Option) -> str:
    words = "".join(
        f" -l {name[2:]}" if name.startswith("--") else f" -s {name[1:]}" for name in option.names
    )
    return f"{words}{' -r' if option.metavar else ''} -d {_fish_word(option.help)}"


def _fish_word(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
