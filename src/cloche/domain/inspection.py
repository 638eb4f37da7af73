"""A domain in JSON (layer 5): what ``cloche inspect`` prints."""

from __future__ import annotations

import json

from cloche.host.text import escape_untrusted
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.domain.launcher import Launcher

#: Longer byte strings (a filter, a file's content) are named by their length.
_LONGEST = 4096


def inspect(launcher: Launcher) -> str:
    """Return state and plan of a running domain."""
    programs = launcher.programs
    state: dict[str, object] = {"domain": launcher.ident, "name": launcher.name or None}
    if programs is not None:
        outlet = programs.outlet
        state |= {
            "state": programs.domain.life.word,
            "detached": programs.detached,
            "programs": programs.count,
            "status": programs.status,
            "attached": outlet is not None and outlet.visitor is not None,
            "agent": programs.domain.agent_version,
        }
    shares = [
        {
            "guest": one.share.target,
            "host": one.share.source,
            "writable": one.share.writable,
            "added": one.added,
        }
        for one in launcher.sharing.shares
    ]
    return json.dumps(state | {"shares": plain(shares), "plan": plain(launcher.plan)}, indent=2) + "\n"


def plain(value: object) -> object:
    """Return what JSON can hold of records, tuples, byte strings and names of files."""
    if isinstance(value, (bytes, str)):
        data = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
        return escape_untrusted(data, _LONGEST) if len(data) <= _LONGEST else f"({len(data)} bytes)"
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    fields = getattr(value, "_fields", None)
    if fields is not None and isinstance(value, tuple):
        inner = {name: plain(one) for name, one in zip(fields, value, strict=True)}
        return {"kind": type(value).__name__, **inner} if _is_one_of_many(value) else inner
    if isinstance(value, (tuple, list)):
        return [plain(one) for one in value]
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def _is_one_of_many(value: object) -> bool:
    """Tell whether a record's class says what it is: a step of the guest's, an operation of a jail."""
    from cloche.model.guest import Step
    from cloche.model.jail import RootOp

    return isinstance(value, (*Step.__args__, *RootOp.__args__))
