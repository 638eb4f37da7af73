"""``cloche profile log|revert`` (layer 6): going back to one of the last starts of a profile."""

from __future__ import annotations

import sys
import time

from cloche.cli.listing import print_json
from cloche.cli.profile import one_name
from cloche.cli.progress import Progress
from cloche.errors import ProfileError, UsageError
from cloche.host import profiles, reverting, undo
from cloche.host.profile_lock import Hold
from cloche.host.text import escape_untrusted, format_size
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.parser import Parsed

#: So much of a program's words stands in a line.
_SHOWN = 60


def log(parsed: Parsed) -> int:
    """List the starts that are kept, the newest first."""
    starts = undo.starts(profiles.directory(one_name(parsed)))
    if parsed.get("json"):
        rows = [
            start._asdict() | {"argv": [word.decode("utf-8", "replace") for word in start.argv]}
            for start in starts
        ]
        print_json(rows)
        return 0
    for start in starts:
        begun = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(start.started_ns // 10**9))
        size = format_size(start.used_bytes)
        words = escape_untrusted(b" ".join(start.argv), _SHOWN)
        problem = f"  (not any more: {start.problem})" if start.problem else ""
        sys.stdout.write(f"{start.number:>6}  {begun}  {size:>8}  {words}{problem}\n")
    return 0


def revert(parsed: Parsed) -> int:
    """Go back to the last start, or to the one that is named."""
    name, number = _operands(parsed)
    directory = profiles.directory(name)
    hold = Hold.take(name)
    progress = Progress()
    try:
        image = profiles.image(name)
        start = reverting.revert(
            directory, image, number, lambda done, total: progress("going back", done / max(total, 1))
        )
    except OSError as error:
        raise ProfileError(
            f"the profile {name} cannot be taken back now: {error.strerror}",
            hint="What was begun is finished by the next command that uses it.",
        ) from None
    finally:
        progress.done()
        hold.release(is_clean=hold.is_clean)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(start.started_ns // 10**9))
    sys.stdout.write(f"{name} is what it was before start {start.number} ({when})\n")
    return 0


def _operands(parsed: Parsed) -> tuple[str, int | None]:
    words = parsed.operands
    if not 1 <= len(words) <= 2:
        raise UsageError("`cloche profile revert` takes a name and at most one start")
    if len(words) == 1:
        return words[0], None
    if not (words[1].isascii() and words[1].isdigit() and int(words[1])):
        raise UsageError(
            f"{words[1]!r} is no start", hint=f"`cloche profile log {words[0]}` lists those that are kept."
        )
    return words[0], int(words[1])
