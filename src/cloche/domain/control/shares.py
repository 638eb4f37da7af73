"""Changing what is shared with a running domain, as the command line and the API do it (layer 5)."""

from __future__ import annotations

import os

from cloche.domain.control.client import Control
from cloche.domain.control.fields import Nothing
from cloche.domain.control.share_add import ShareAdd
from cloche.domain.control.share_list import Listed, ShareList, Shares
from cloche.domain.control.share_remove import ShareRemove
from cloche.errors import UsageError
from cloche.host.paths import open_share
from cloche.plan.shares import parse_share


def add_share(ident: str, word: str) -> str:
    """Share what ``DIR[:ro|:rw][:at=PATH]`` says with a running domain; returns its place in the guest.

    Raises:
        UsageError: The word is malformed.
        ShareError: The directory cannot be shared, or not there.
        DomainError: The domain has ended.
    """
    share, fd = open_share(word)
    try:
        with Control(ident) as control:
            control.ask(ShareAdd(share.target, share.writable), Nothing, (fd,))
    finally:
        os.close(fd)
    return share.target


def remove_share(ident: str, place: str, *, force: bool = False) -> None:
    """Take away what is shared at ``place`` in the guest, or from there on the host.

    Raises:
        UsageError: The place cannot be one.
        ShareError: Nothing is shared there, or it is in use and ``force`` was not given.
        DomainError: The domain has ended.
    """
    source, _, target = parse_share(place)
    if target is not None or source != place:
        raise UsageError(
            f"{place!r} has options, and a share is taken away as it is", hint="Name its directory."
        )
    with Control(ident) as control:
        control.ask(ShareRemove(os.path.abspath(os.path.expanduser(place)), force), Nothing)


def list_shares(ident: str) -> tuple[Listed, ...]:
    """Return what is shared with a running domain.

    Raises:
        DomainError: The domain has ended.
    """
    with Control(ident) as control:
        return control.ask(ShareList(), Shares).shares
