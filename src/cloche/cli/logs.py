"""``cloche logs`` (layer 6): what a detached domain's program has written."""

from __future__ import annotations

import os
import sys

from cloche.domain.find import find_any
from cloche.domain.following import read_output
from cloche.domain.outlet import name_of
from cloche.errors import UsageError
from cloche.host.outlog import CLOCHE, STDOUT
from cloche.host.text import escape_untrusted
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cloche.cli.parser import Parsed
    from cloche.host.outlog import Entry


def main(parsed: Parsed) -> int:
    """Write to stdout and stderr what the program has written there."""
    if len(parsed.operands) != 1:
        raise UsageError("`cloche logs` needs a domain", hint="Write: cloche logs DOMAIN")
    ident, running, _ = find_any(parsed.operands[0])
    follow = bool(parsed.get("follow")) and running is not None
    entries = read_output(ident, follow=follow)
    last = parsed.get("lines")
    if last is not None:
        entries = _tail(ident, entries, int(last), follow=follow)  # type: ignore[call-overload]
    show = _as_json if parsed.get("json") else _as_written
    for entry in entries:
        show(entry)
    return 0


def _as_written(entry: Entry) -> None:
    if entry.stream == CLOCHE:
        # The words of cloche itself, and among them some of the guest's.
        for line in entry.data.splitlines():
            os.write(2, b"cloche: " + escape_untrusted(line, 4096).encode() + b"\n")
        return
    _write(1 if entry.stream == STDOUT else 2, entry.data)


def _as_json(entry: Entry) -> None:
    import json

    line = {
        "time": entry.time_ns / 1e9,
        "stream": name_of(entry.stream),
        "text": entry.data.decode("utf-8", "backslashreplace"),
    }
    _write(1, json.dumps(line).encode() + b"\n")


def _write(fd: int, data: bytes) -> None:
    sys.stdout.flush()
    while data:
        data = data[os.write(fd, data) :]


def _tail(ident: str, entries: Iterator[Entry], lines: int, *, follow: bool) -> Iterator[Entry]:
    """Leave out all but the last lines of what is there now."""
    from collections import deque

    kept: deque[Entry] = deque()
    ends = 0
    position = 0
    for entry in read_output(ident):
        position = entry.position
        kept.append(entry)
        ends += entry.data.count(b"\n")
        while kept and ends - kept[0].data.count(b"\n") > lines:
            ends -= kept.popleft().data.count(b"\n")
    open_end = bool(kept) and not kept[-1].data.endswith(b"\n")
    surplus = ends + open_end - lines
    for entry in kept:
        data = entry.data
        while surplus > 0 and b"\n" in data:
            data = data.partition(b"\n")[2]
            surplus -= 1
        if surplus <= 0 and data:
            yield entry._replace(data=data)
    if follow:
        for entry in entries:
            if entry.position > position:
                yield entry
