"""``cloche snapshot`` and ``cloche fork`` (layer 6): running domains that are saved, gone on with, and doubled."""

from __future__ import annotations

import os
import sys

from cloche.domain import snapshotting
from cloche.domain.find import find_domain
from cloche.errors import SnapshotError, UsageError
from cloche.host import snapshots
from cloche.host.text import escape_untrusted
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.listing import Row
    from cloche.cli.parser import Parsed
    from cloche.domain.snapshotting import Again, Beginning

_SHOWN = 60


def save(parsed: Parsed) -> int:
    """Handle ``cloche snapshot save``."""
    domain, name = _operands(parsed, 2)
    snapshotting.save(find_domain(domain).ident, name, stop=bool(parsed.get("stop")))
    return 0


def restore(parsed: Parsed) -> int:
    """Handle ``cloche snapshot restore``."""
    (name,) = _operands(parsed, 1)
    ident, title = snapshotting.restore(name, str(parsed.get("name") or ""), _start)
    sys.stdout.write(f"{title or ident}\n")
    return 0


def fork(parsed: Parsed) -> int:
    """Handle ``cloche fork``."""
    (domain,) = _operands(parsed, 1)
    titles: tuple[str, ...] = tuple(parsed.get("name") or ())  # type: ignore[arg-type]
    count = int(parsed.get("count") or max(len(titles), 1))  # type: ignore[call-overload]
    for ident, title in snapshotting.fork(find_domain(domain).ident, count, titles, _start):
        sys.stdout.write(f"{title or ident}\n")
    return 0


def list_(parsed: Parsed) -> int:
    """Handle ``cloche snapshot list``; status 125 when one is damaged."""
    from cloche.cli.listing import print_rows

    # Somebody who looks what there is wants to know what takes the room, too: what a killed command has left does not.
    snapshots.sweep()
    rows = [_row(name, check=bool(parsed.get("check"))) for name in snapshots.names()]
    print_rows(
        parsed, rows, _in_words, "There is no snapshot yet: `cloche snapshot save DOMAIN NAME` makes one."
    )
    return 125 if any(row.get("damage") for row in rows) else 0


def _row(name: str, *, check: bool) -> Row:
    from cloche.domain.snapshot import read

    row: Row = {"name": name}
    try:
        directory = snapshots.locate(name)
        found = read(directory)
    except SnapshotError as error:
        return row | {"damage": error.message}
    sizes = (os.stat(os.path.join(directory, file)).st_blocks * 512 for file in os.listdir(directory))
    row |= {
        "made": int(found.made),
        "program": [escape_untrusted(word, 4096) for word in found.command.argv],
        "memory_mib": found.memory_bytes >> 20,
        "used_mib": round(found.used_bytes / (1 << 20), 1),
        "on_disk_mib": round(sum(sizes) / (1 << 20), 1),
        "shares": [escape_untrusted(os.fsencode(known.path), 4096) for known in found.shares],
        "disks": [disk.tag for disk in found.request.disks],
    }
    if check:
        row["damage"] = snapshotting.check(name)
    return row


def _in_words(row: Row) -> str:
    from cloche.cli.listing import day_and_time

    if "made" not in row:
        return f"{row['name']}  damaged: {row['damage']}"
    program = " ".join(row["program"])[:_SHOWN]
    seen = {None: "", "": "  intact"}.get(row.get("damage"), f"  damaged: {row.get('damage')}")
    return f"{row['name']}  {day_and_time(row['made'])}  {row['on_disk_mib']} MiB  {program}{seen}"


def delete(parsed: Parsed) -> int:
    """Handle ``cloche snapshot delete NAME...``."""
    if not parsed.operands:
        raise UsageError("no snapshot was named", hint="`cloche snapshot list` lists them.")
    for name in parsed.operands:
        snapshots.delete(name)
    return 0


def _operands(parsed: Parsed, count: int) -> tuple[str, ...]:
    if len(parsed.operands) != count:
        verb = " ".join(parsed.path)
        raise UsageError(
            f"`cloche {verb}` takes {parsed.verb.operands}",
            hint=f"Write: cloche {verb} {parsed.verb.operands}",
        )
    return parsed.operands


def _start(again: Again) -> Beginning:
    # A domain to be forked is being saved meanwhile.
    from cloche.cli.detach import start
    from cloche.domain.detached import Options

    return start(again, Options())
