"""Which ids root's domains may take for their processes (layer 3a)."""

from __future__ import annotations

from cloche.model.jail import IDS_PER_DOMAIN, IdRange

#: Process ids end below 2**22 (PID_MAX_LIMIT), and the kernel gives a number to one warden at a time. The range lies
#: above all that systemd ("UIDs-GIDS.md"), login.defs (subordinate ids) and directory services (sssd: up to 2000200000)
#: give away by default, and below the "foreign" ids (0x7FFE0000) and those that are negative in 32 bits.
_PREFERRED = IdRange(0x7740_0000, 1 << 22)
#: A container often has 65536 ids only. These are systemd's for services that have an id as long as they run; there is
#: hardly one in a container. As they are few, domains 135 numbers apart have the same.
_SMALL = IdRange(61184, 135)


def find_ids() -> IdRange | None:
    """Return a range of ids that exist here and are nobody's; None when there is none."""
    maps = [_spans(_read(name)) for name in ("uid_map", "gid_map")]
    for found in (_PREFERRED, _SMALL):
        last = found.first + found.domains * IDS_PER_DOMAIN - 1
        if all(any(first <= found.first and last <= end for first, end in spans) for spans in maps):
            return found
    return None


def _read(name: str) -> str:
    with open(f"/proc/self/{name}", encoding="utf-8") as file:
        return file.read()


def _spans(text: str) -> list[tuple[int, int]]:
    """Return the first and the last id of each line of a map (user_namespaces(7)): inside, outside, count."""
    rows = [[int(word) for word in line.split()] for line in text.splitlines()]
    return [(inside, inside + count - 1) for inside, _, count in rows]
