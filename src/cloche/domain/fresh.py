"""What each domain has of its own, in place of what stands for it in a plan (layer 5)."""

from __future__ import annotations

import os

from cloche.errors import LaunchError
from cloche.model.jail import OWN, Bind, File
from cloche.model.plan import RUN_DIRECTORY
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.model.jail import IdRange, Jail, RootOp


def open_program(path: str) -> int:
    """Open a program that a process is to execute and not to see.

    Raises:
        LaunchError: It cannot be opened.
    """
    try:
        return os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise LaunchError(
            f"cannot open {path}: {error.strerror}", hint="Run `make setup` in cloche's directory."
        ) from None


def own_ids(jail: Jail, ids: IdRange | None, warden: int, ident: int) -> Jail:
    """Fill in the ids that a process has for itself. As long as the warden lives, its number is nobody else's."""
    if ids is None or OWN not in (jail.uid, jail.gid):
        return jail
    number = ids.number(warden, ident)
    return jail._replace(
        uid=number if jail.uid == OWN else jail.uid, gid=number if jail.gid == OWN else jail.gid
    )


def fresh_root(
    root: tuple[RootOp, ...], machine_id: bytes, place: Callable[[bytes], bytes]
) -> tuple[RootOp, ...]:
    """Give this domain a machine-id and sockets of its own, in place of what stands for them in the plan.

    Args:
        root: What the plan says.
        machine_id: Fresh digits.
        place: Says where a socket of the run directory is.
    """
    return tuple(_own(op, machine_id, place) for op in root)


def _own(op: RootOp, machine_id: bytes, place: Callable[[bytes], bytes]) -> RootOp:
    if isinstance(op, File) and op.path.endswith(b"/etc/machine-id"):
        return op._replace(content=machine_id + b"\n")
    if isinstance(op, Bind) and op.source.startswith(RUN_DIRECTORY + b"/"):
        return op._replace(source=place(op.source[len(RUN_DIRECTORY) + 1 :]))
    return op
