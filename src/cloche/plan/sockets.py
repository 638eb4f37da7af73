"""Where sockets between a guest and the host may be (layer 2, pure)."""

from __future__ import annotations

from cloche.errors import UsageError
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cloche.model.request import Share


def check_sockets(path: str, shares: Iterable[Share]) -> None:
    """Look whether a guest could write where the sockets are that it may connect to.

    It could give the name of such a socket to any other that lies there.

    Raises:
        UsageError: It could.
    """
    directory = path.rpartition("/")[0] + "/"
    for share in shares:
        if share.writable and directory.startswith(share.source.rstrip("/") + "/"):
            raise UsageError(
                f"--vsock {path}: the guest can write there, and could name sockets as it likes",
                hint="Name a socket in a directory that is not shared writable.",
            )
