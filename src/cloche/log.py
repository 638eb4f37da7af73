"""Where messages of cloche go (layer 0, standard library only).

Code below ``cloche.cli`` never prints. It calls ``debug`` or ``notice``; the command line installs a sink, a host
program of the API may install another. Without one, messages vanish.
"""

from __future__ import annotations

from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_sinks: dict[str, Callable[[str], None]] = {}


def set_sink(level: str, sink: Callable[[str], None] | None) -> None:
    """Send messages of ``level`` (``debug`` or ``notice``) to ``sink``; None silences them."""
    if sink is None:
        _sinks.pop(level, None)
    else:
        _sinks[level] = sink


def debug(message: str) -> None:
    """Say what is being done (shown with ``-v``)."""
    sink = _sinks.get("debug")
    if sink is not None:
        sink(message)


def notice(message: str) -> None:
    """Say in one line what the user should know although nothing failed."""
    sink = _sinks.get("notice")
    if sink is not None:
        sink(message)
