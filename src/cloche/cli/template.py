"""``cloche template`` (layer 6): the saved machines from which runs go on."""

from __future__ import annotations

import os
import sys

from cloche.cli.listing import day_and_time, print_rows
from cloche.domain.template import is_intact, make_template, note_failure
from cloche.errors import ClocheError, TemplateError, UsageError
from cloche.host import templates
from cloche.host.facts import collect_facts
from cloche.model.request import Disk, Layer, RunRequest
from cloche.plan.layers import add_layer
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.listing import Row
    from cloche.cli.parser import Parsed


def build(parsed: Parsed) -> int:
    """Handle ``cloche template build``."""
    os.umask(0o077)
    background = bool(parsed.get("background"))
    if background:
        os.nice(19)
    plain = {key: parsed.values[key] for key in ("cpus", "kernel") if key in parsed.values}
    request = RunRequest(argv=(), memory_mib=parsed.values.get("memory"), **plain)  # type: ignore[arg-type]
    # What disks are called and where they lie is each run's own.
    drives = int(parsed.values.get("drives", 0))  # type: ignore[call-overload]
    if parsed.get("for_profiles"):
        if drives:
            raise UsageError("--for-profiles and --drives contradict each other", hint="Give one of them.")
        request = add_layer(request, Layer("", ""), 0)
    elif drives:
        request = request._replace(disks=(Disk("", "", is_whole=True),) * drives)
    try:
        name = make_template(request, collect_facts(), wait=not background)
    except ClocheError:
        if background:
            note_failure()
        raise
    sys.stdout.write(f"{name}\n")
    return 0


def list_(parsed: Parsed) -> int:
    """Handle ``cloche template list``; status 125 when one is damaged."""
    rows = [_row(name, check=bool(parsed.get("check"))) for name in templates.names()]
    print_rows(
        parsed,
        rows,
        _in_words,
        "There is no template yet: the first run makes one, or `cloche template build`.",
    )
    return 0 if all(row.get("intact", True) for row in rows) else 125


def _row(name: str, *, check: bool) -> Row:
    directory = os.path.join(templates.home(), name)
    _, content = templates.read_info(directory)
    row: Row = {"name": name, "made": int(os.stat(directory).st_mtime)}
    if content is not None:
        row |= {
            "memory_mib": content.memory_bytes >> 20,
            "used_mib": round(content.used_bytes / (1 << 20), 1),
            "state_kib": content.state_bytes >> 10,
        }
    if check or content is None:
        row["intact"] = content is not None and is_intact(directory)
    return row


def _in_words(row: Row) -> str:
    what = f"{row['memory_mib']} MiB, {row['used_mib']} of them used" if "memory_mib" in row else "not whole"
    seen = {True: "  intact", False: "  damaged", None: ""}[row.get("intact")]
    return f"{row['name']}  {day_and_time(row['made'])}  {what}{seen}"


def remove(parsed: Parsed) -> int:
    """Handle ``cloche template remove NAME...``; without a name, all of them."""
    for name in parsed.operands:
        if name.startswith(templates.HIDDEN) or "/" in name:
            raise UsageError(f"{name!r} is no template's name", hint="`cloche template list` lists them.")
    for name in parsed.operands or templates.names():
        if not templates.remove(name):
            raise TemplateError(f"there is no template {name}", hint="`cloche template list` lists them.")
    return 0
