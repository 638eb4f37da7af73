"""The command line's entry (layer 6): chooses the verb, turns errors into one sentence and a status."""

from __future__ import annotations

import gc
import os
import sys

from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.parser import Parsed
    from cloche.errors import ClocheError


def main(argv: list[str] | None = None) -> int:
    """Run one command line and return its exit status."""
    # Until there is something to wait for: looking for garbage among what was just imported is a tenth of the imports.
    gc.disable()
    words = sys.argv[1:] if argv is None else argv
    _fill_standard_descriptors()
    try:
        status = _answer(words)
        # Now, while a reader that left or a full disk can still be told from our own mistakes.
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        return _system_failure(error)
    return status


def _answer(words: list[str]) -> int:
    if words[:1] == ["--version"]:
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


def _fill_standard_descriptors() -> None:
    """Put /dev/null where the caller closed a standard stream: no other file may get its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    if sys.__stdout__ is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)


def _system_failure(error: OSError) -> int:
    """Tell what nobody below could: the host refused something."""
    if isinstance(error, BrokenPipeError) and _reader_left():
        _silence_stdout()
        return 141
    from cloche.errors import ClocheError

    where = f": {error.filename}" if error.filename else ""
    report(
        ClocheError(
            f"the host refused what cloche needs: {error.strerror or error}{where}",
            hint="`cloche doctor` says what this host allows."
            if where
            else "Look at where the output goes to.",
        )
    )
    _silence_stdout()
    return 125


def _reader_left() -> bool:
    import select

    poll = select.poll()
    poll.register(1, 0)
    return bool(poll.poll(0))


def _silence_stdout() -> None:
    # What is still buffered cannot be written, and the interpreter must not complain about it again at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 1)


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
    module, _, function = parsed.verb.handler.partition(":")
    if parsed.verb.name != "run":
        gc.enable()
    name = f"cloche.cli.{module}"
    # Not importlib's function of that purpose: the package would be imported for it, and `warnings` with it.
    __import__(name)
    status: int = getattr(sys.modules[name], function)(parsed)
    return status


def report(error: ClocheError) -> None:
    """Print an error: what failed and why, what others said about it, then the hint."""
    _write_line(f"cloche: {error.message}" + (":" if error.detail else ""))
    for line in error.detail:
        _write_line(f"  {line}")
    if error.hint:
        _write_line(f"hint: {error.hint}")


def _write_line(text: str) -> None:
    # A file's name may hold an escape sequence: only line ends reach the terminal as they are.
    if not text.isprintable():
        text = os.fsencode(text).decode("utf-8", "backslashreplace")
        text = "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)
    try:
        os.write(2, text.encode("utf-8", "backslashreplace") + b"\n")
    except OSError:
        return
