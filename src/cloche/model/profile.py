"""Profiles (layer 1, pure): what keeps the changes of one run for the next."""

from __future__ import annotations

from cloche.record import Record

#: The tag of the disk that a guest's writable layer lies on.
TAG = "profile"
#: How large the disk of a profile may become unless something else is asked for.
CEILING_BYTES = 20 << 30
#: Where on the disk a guest's changes are.
UPPER = "upper"
#: How many starts can be gone back to, and how many bytes that takes, unless something else is set.
KEPT_STARTS, KEPT_BYTES = 5, 4 << 30


class Entry(Record):
    """A profile as a listing shows it.

    Attributes:
        name: What its owner calls it.
        size_bytes: How large its disk may become.
        used_bytes: What it takes on the host.
        state: ``ready``, ``running``, ``locked``, or ``elsewhere``: another host seems to use it.
        domain: The identity of the domain that uses it; empty for none, or when that has none yet.
    """

    name: str
    size_bytes: int
    used_bytes: int
    state: str
    domain: str = ""


class Change(Record):
    """One difference between a profile and the host's tree, as a guest tells it.

    Attributes:
        kind: ``added``, ``changed`` or ``deleted``.
        size: Bytes of the profile's file; 0 for a directory, and for what was deleted.
        path: As the guest sees it.
    """

    kind: str
    size: int
    path: bytes
