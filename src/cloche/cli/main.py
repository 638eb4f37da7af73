"""The command line's entry (layer 6): chooses the verb, turns errors into one sentence and a status."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.parser import Parsed
    from cloche.errors import ClocheError


def main(argv: list[str] | None = None) -> int:
    """Run one command line and return its exit status."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] in (["--version"], ["version"]):
        # The commonest question of scripts is answered before anything is imported.
        from cloche import __version__

        sys.stdout.write(f"cloche {__version__}\n")
        return 0
    from cloche.errors import ClocheError

    try:
        return _dispatch(words)
    except ClocheError as error:
        report(error)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our listing has gone; the interpreter must not complain about it again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141


def _dispatch(words: list[str]) -> int:
    from cloche import log
    from cloche.cli.parser import parse
    from cloche.cli.verbs import COMMON, RUN, VERBS

    if not words or words[0] in ("-h", "--help"):
        from cloche.cli.reference import overview

        sys.stdout.write(overview())
        return 0 if words else 125
    parsed = parse(words, VERBS, RUN, COMMON)
    log.set_sink("notice", lambda line: _write_line(f"cloche: {line}"))
    if parsed.get("verbose"):
        log.set_sink("debug", lambda line: _write_line(f"cloche: {line}"))
    if parsed.get("help") or not parsed.verb.handler:
        from cloche.cli.reference import verb_help

        sys.stdout.write(verb_help(parsed.path or ("run",)))
        return 0 if parsed.get("help") else 125
    return _call(parsed)


def _call(parsed: Parsed) -> int:
    from importlib import import_module

    module, _, function = parsed.verb.handler.partition(":")
    status: int = getattr(import_module(f"cloche.cli.{module}"), function)(parsed)
    return status


def report(error: ClocheError) -> None:
    """Print an error: what failed and why, then the hint."""
    _write_line(f"cloche: {error.message}")
    if error.hint:
        _write_line(f"hint: {error.hint}")


def _write_line(text: str) -> None:
    try:
        # Unencodable characters (file names that are not UTF-8) are shown escaped instead of failing.
        os.write(2, text.encode("utf-8", "backslashreplace") + b"\n")
    except OSError:
        return
