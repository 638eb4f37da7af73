"""Help, manual page and completion: each is checked by the program that will read it."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from cloche.cli.main import main
from cloche.cli.reference import overview, verb_help
from cloche.cli.verbs import COMMON, RUN, VERBS
from cloche.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from cloche.cli.parser import Verb

#: Longer lines are cut or folded by most terminals.
WIDEST = 100


def paths(verbs: tuple[Verb, ...] = VERBS, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the path of every verb, the hidden ones too."""
    return [p for verb in verbs for p in ((*path, verb.name), *paths(verb.verbs, (*path, verb.name)))]


def printed(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command line that must succeed and return what it prints."""
    assert main(list(words)) == 0
    output = capfd.readouterr()
    assert output.err == ""
    return output.out


@pytest.mark.parametrize("path", paths(), ids=" ".join)
def test_every_verb_has_help(path: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    """--help and `cloche help` print the same, with every option and every inner verb, in lines that fit."""
    text = printed(capfd, *path, "--help")
    assert text == verb_help(path)
    assert text == printed(capfd, "help", *path)
    assert text.startswith(f"usage: cloche {' '.join(path)}")
    verb = next(verb for verb in VERBS if verb.name == path[0])
    for name in path[1:]:
        verb = next(inner for inner in verb.verbs if inner.name == name)
    for option in (*verb.options, *COMMON):
        assert ", ".join(option.names) in text
    for inner in verb.verbs:
        assert inner.summary in text
    assert max(map(len, text.splitlines())) <= WIDEST


def test_the_overview_names_every_verb_and_option(capfd: pytest.CaptureFixture[str]) -> None:
    """The first help shows all verbs but the internal ones, and the options of run."""
    text = printed(capfd, "--help")
    assert text == overview() == printed(capfd, "help") == printed(capfd, "-h")
    for verb in VERBS:
        assert (f"\n  {verb.name} " in text) is not verb.hidden
    for option in RUN.options:
        assert option.names[-1] in text
    assert max(map(len, text.splitlines())) <= WIDEST


def test_options_before_help_ask_for_the_help_of_run(capfd: pytest.CaptureFixture[str]) -> None:
    """An option of run and --help, without a verb, mean the help of run."""
    assert printed(capfd, "-m", "1G", "--help") == verb_help(("run",))


@pytest.mark.parametrize("path", [("no",), ("run", "x"), ("kernel", "build", "x")], ids=" ".join)
def test_help_for_what_is_no_verb(path: tuple[str, ...]) -> None:
    """Asking for the help of something else names it."""
    with pytest.raises(UsageError, match=" ".join(path)):
        verb_help(path)


def test_the_manual_page_has_no_warnings(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """The formatter of manual pages accepts the page without a word, and nothing of it is lost."""
    assert main(["man"]) == 0
    page = capfdbinary.readouterr().out
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tascii", "-rLL=200n", "-P-cbou"],
        input=page,
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""
    text = re.sub(r"\s+", " ", done.stdout.decode("ascii"))
    for option in (*RUN.options, *COMMON):
        assert ", ".join(option.names) in text
        assert option.help.replace("`", "'") in text.replace("`", "'")
    assert "~/.config/cloche/cloche.toml" in text
    assert "--no-NAME takes one back" in text
    for path in paths():
        assert (f"cloche {' '.join(path)}" in text) is (path != ("supervise",))
    assert "cloche python3 -c 'print(1)'" in text
    assert "~/papers" in text


@pytest.mark.parametrize(
    "line, expected, unexpected",
    [
        ("cloche ", {"run", "kernel", "doctor", "ls"}, {"supervise", "--share"}),
        ("cloche ker", {"kernel"}, {"run"}),
        ("cloche kernel", {"kernel"}, {"build"}),
        ("cloche --sh", {"--share", "--shell-on-failure"}, {"--strace"}),
        ("cloche --v", {"--verbose", "--version"}, {"--here"}),
        ("cloche run ", {"ls"}, {"--share"}),
        ("cloche --no-s", {"--no-share", "--no-strace"}, {"--no-here", "--share"}),
        ("cloche run --no-p", {"--no-pool", "--no-privileged"}, {"--no-profile"}),
        ("cloche run --her", {"--here"}, set()),
        ("cloche -m 1G --cp", {"--cpus"}, set()),
        ("cloche --memory = 1G --cp", {"--cpus"}, set()),
        ("cloche --share /a : rw --cp", {"--cpus"}, set()),
        ("cloche --share = /a :ro: at = /b --cp", {"--cpus"}, set()),
        ("cloche --here -- l", {"ls"}, {"list"}),
        ("cloche kernel ", {"build", "fetch", "list", "use", "remove"}, {"ls", "run"}),
        ("cloche kernel list --", {"--json", "--help"}, {"--share"}),
        ("cloche completion ", {"bash", "zsh", "fish"}, {"run"}),
        ("cloche help k", {"kernel"}, {"run"}),
        ("cloche doctor --", {"--json"}, {"--share"}),
    ],
)
def test_bash_offers(line: str, expected: set[str], unexpected: set[str], tmp_path: Path) -> None:
    """Bash, having read the script, offers the words that fit where the cursor is."""
    offered = complete_in_bash(line, tmp_path)
    assert expected <= offered
    assert not unexpected & offered


@pytest.mark.parametrize("line", ["cloche --share ", "cloche -m ", "cloche ls ", "cloche run -- ls -"])
def test_bash_leaves_files_to_the_shell(line: str, tmp_path: Path) -> None:
    """For values and for the program's own words the script offers nothing, and bash falls back to file names."""
    assert complete_in_bash(line, tmp_path) == set()


def complete_in_bash(line: str, directory: Path) -> set[str]:
    """Return the candidates bash has for the last word of ``line``, whose words are separated by one blank each."""
    script = directory / "cloche.bash"
    with script.open("wb") as file:
        subprocess.run(
            ["/usr/bin/python3", "-IS", "-c", STARTER, "completion", "bash"], stdout=file, check=True
        )
    program = (
        'set -e; . "$1"; shift; [[ "$(complete -p cloche)" == "complete -o default -F _cloche cloche" ]]\n'
        'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _cloche || true\n'
        '[ ${#COMPREPLY[@]} = 0 ] || printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", program, "bash", str(script), *line.split(" ")],
        capture_output=True,
        check=True,
        env={"PATH": "/usr/bin:/bin"},
        text=True,
    )
    assert done.stderr == ""
    return set(done.stdout.split())


STARTER = (
    f"import sys; sys.path.insert(0, {__file__.rpartition('/tests/')[0] + '/src'!r}); "
    "from cloche.cli.main import main; sys.exit(main())"
)


def test_the_script_for_zsh_is_bashs(capfd: pytest.CaptureFixture[str]) -> None:
    """Zsh is told the command and runs the script for bash, which bash finds correct."""
    text = printed(capfd, "completion", "zsh")
    assert text.startswith("#compdef cloche\n")
    assert text.endswith(printed(capfd, "completion", "bash"))
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=True)
    assert done.stderr == ""


def test_the_script_for_fish_has_only_whole_commands(capfd: pytest.CaptureFixture[str]) -> None:
    """Each line for fish is one `complete` whose quoted words are closed, and every option of run has one."""
    lines = printed(capfd, "completion", "fish").splitlines()
    word = r"(?:'(?:[^'\\]|\\['\\])*'|[\w-]+)"
    for line in lines[1:]:
        assert re.fullmatch(rf"complete -c cloche(?: -[nasld] {word}| -r)+", line), line
    for option in RUN.options:
        long = option.names[-1].removeprefix("--")
        assert any(f" -l {long}" in line and "__fish_use_subcommand" in line for line in lines)


@pytest.mark.parametrize("words", [(), ("tcsh",), ("bash", "zsh")], ids=" ".join)
def test_completion_is_for_one_known_shell(words: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    """No shell, another shell and two shells are refused with the choice."""
    assert main(["completion", *words]) == 125
    assert "Choose bash, zsh or fish." in capfd.readouterr().err
