"""``cloche exec|shell|attach`` (layer 6): programs beside the one a domain was started for, and that one itself.

The supervisor gets this process's streams and moves the bytes; what stays here is the terminal, the signals and the
status.
"""

from __future__ import annotations

import os

from cloche.cli.joined import Joined
from cloche.cli.terminal import Terminal
from cloche.domain.control.client import Control
from cloche.domain.control.fields import store
from cloche.domain.control.joining import Attach, Exec, Words
from cloche.domain.find import find_domain
from cloche.errors import UsageError
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.parser import Parsed

#: Of the caller's environment, what belongs to the terminal.
_OF_TERMINAL = (b"TERM", b"COLORTERM")
#: The administrator's own shell, or the one that every guest has.
_SHELL = (b"/bin/sh", b"-c", b'cd; test -x "$SHELL" && exec "$SHELL" -l; exec /bin/sh -l')


def exec_(parsed: Parsed) -> int:
    """Run a program in a running domain and return its status."""
    words = parsed.operands[1:]
    if words[:1] == ("--",):
        words = words[1:]
    if not words:
        raise UsageError("no program was named", hint="For example: cloche exec DOMAIN -- ps aux")
    return _execute(parsed, tuple(os.fsencode(word) for word in words), str(parsed.get("user", "")))


def shell(parsed: Parsed) -> int:
    """Be root in a running domain."""
    if len(parsed.operands) > 1:
        raise UsageError(
            "`cloche shell` takes a domain and nothing else", hint="`cloche exec` runs programs."
        )
    return _execute(parsed, _SHELL, str(parsed.get("user", "root")))


def _execute(parsed: Parsed, argv: tuple[bytes, ...], user: str) -> int:
    asked = parsed.get("tty")
    terminal = Terminal(os.isatty(0) and os.isatty(1) if asked is None else bool(asked))
    env: tuple[tuple[bytes, bytes], ...] = ()
    if "env" in parsed.values:
        from cloche.domain.request import read_variable

        env = tuple(read_variable(word) for word in parsed.values["env"])  # type: ignore[attr-defined]
    ident = find_domain(parsed.operands[0] if parsed.operands else None).ident
    return execute(ident, terminal, argv, env, user=user, workdir=str(parsed.get("workdir", "")))


def execute(
    ident: str,
    terminal: Terminal,
    argv: tuple[bytes, ...],
    env: tuple[tuple[bytes, bytes], ...],
    *,
    user: str = "",
    workdir: str = "",
) -> int:
    """Run a program in a running domain with this process's streams, and return its status.

    Args:
        ident: The domain's identity.
        terminal: The caller's.
        argv: The program and its arguments.
        env: Variables besides those of the domain's own program.
        user: Whom it runs as; empty for whom the domain's own program does.
        workdir: Where it starts; empty for where the domain's own program did.

    Raises:
        ClocheError: It cannot be started there.
    """
    if terminal.wanted:
        env = (*((name, os.environb[name]) for name in _OF_TERMINAL if name in os.environb), *env)
    joined = _join(ident, terminal)
    words = store(Words(argv, env))
    rows, cols = terminal.size() if terminal.wanted else (0, 0)
    joined.begin(Exec(terminal.wanted, rows, cols, user, workdir), (0, 1, 2, words))
    os.close(words)
    return joined.run()


def attach(parsed: Parsed) -> int:
    """Lend this terminal, or these streams, to a detached program until it ends or is let go."""
    from cloche import log
    from cloche.domain.control.life import AskLife, LifeNow

    if len(parsed.operands) > 1:
        raise UsageError("`cloche attach` takes one domain", hint="Write: cloche attach DOMAIN")
    ident = find_domain(parsed.operands[0] if parsed.operands else None).ident
    with Control(ident) as control:
        life = control.ask(AskLife(), LifeNow)
    terminal = Terminal(life.terminal and os.isatty(0) and os.isatty(1))
    if terminal.wanted:
        log.notice("attached; Ctrl-] leaves the program alone again")
    joined = _join(ident, terminal)
    rows, cols = terminal.size() if terminal.wanted else (0, 0)
    joined.begin(Attach(not parsed.get("no_stdin"), rows, cols), (0, 1, 2))
    return joined.run()


def _join(ident: str, terminal: Terminal) -> Joined:
    return Joined(ident, Control(ident, None), terminal)
