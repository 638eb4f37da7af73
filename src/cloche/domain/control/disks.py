"""Giving a running domain a disk, as the command line and the API do it (layer 5)."""

from __future__ import annotations

from cloche.domain.control.client import Control
from cloche.domain.control.disk_add import DiskAdd
from cloche.domain.control.fields import Nothing
from cloche.host.paths import resolve_disk


def add_disk(ident: str, word: str) -> str:
    """Give a running domain the disk that ``TAG=FILE[,format=raw|qcow2][,ro]`` says; returns its place in the guest.

    Raises:
        UsageError: The word is malformed.
        DiskError: It cannot have it.
        DomainError: It cannot be saved, or has ended.
    """
    disk = resolve_disk(word)
    with Control(ident) as control:
        control.ask(DiskAdd.of(disk), Nothing)
    return f"/dev/disk/by-tag/{disk.tag}"
