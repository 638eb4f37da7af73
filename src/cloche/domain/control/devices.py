"""Giving a running domain another device, as the command line and the API do it (layer 5)."""

from __future__ import annotations

from cloche.domain.control.adding import DiskAdd, NetAdd
from cloche.domain.control.client import Control
from cloche.domain.control.fields import Nothing
from cloche.errors import UsageError
from cloche.host.images import resolve_disk
from cloche.host.networks import resolve_network
from cloche.plan.networks import CARD


def add_disk(ident: str, word: str) -> str:
    """Give a running domain the disk that a word of ``--disk`` says; returns its place in the guest.

    Raises:
        UsageError: The word is malformed.
        DiskError: It cannot have it.
        DomainError: It cannot be saved, or has ended.
    """
    disk = resolve_disk(word)
    with Control(ident) as control:
        control.ask(DiskAdd.of(disk), Nothing)
    return f"/dev/disk/by-tag/{disk.tag}"


def add_network(ident: str, word: str) -> str:
    """Give a running domain the card that ``user`` or ``socket:PATH`` says; returns what the guest calls it.

    Raises:
        UsageError: The word is malformed.
        NetworkError: It cannot have it: nobody listens there, or it has one.
        DomainError: It cannot be saved, or has ended.
    """
    network = resolve_network(word)
    if network is None:
        raise UsageError("none is no network to be added", hint="Write user or socket:PATH.")
    with Control(ident) as control:
        control.ask(NetAdd.of(network), Nothing)
    return CARD.decode()
