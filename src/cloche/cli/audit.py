"""``cloche audit`` (layer 6): what holds the processes of a running domain, read from the kernel, with a verdict."""

from __future__ import annotations

import os
import sys

from cloche.cli.listing import may_color, print_json, red
from cloche.domain.audit import Audit, Audited, audit_domain, capability_names
from cloche.domain.find import find_domain
from cloche.errors import UsageError
from cloche.host.procfs import CAPABILITY_SETS, NAMESPACES
from cloche.host.text import escape_untrusted
from cloche.model.machine import NOT_APART
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.parser import Parsed
    from cloche.host.procfs import Process

_HEADINGS = (
    "PROCESS",
    "PID",
    "IDS",
    "CAPABILITIES",
    "NNP",
    "FILTERS",
    "CALLS",
    "NAMESPACES",
    "CLOSED",
    "FILES",
    "MEMORY",
    "VERDICT",
)
_LONGEST_WORD = 200


def main(parsed: Parsed) -> int:
    """Look at a domain. Status 0 when all of its policies hold, 1 when one does not."""
    if len(parsed.operands) > 1:
        raise UsageError("`cloche audit` looks at one domain at a time", hint="Name one of them.")
    audit = audit_domain(find_domain(parsed.operands[0] if parsed.operands else None))
    if parsed.get("json"):
        print_json(as_json(audit))
    else:
        color = may_color()
        sys.stdout.write(in_words(audit, color=color, files=bool(parsed.get("files"))))
    return 1 if audit.failures else 0


def as_json(audit: Audit) -> dict[str, object]:
    """Return what ``--json`` prints; docs/audit.md describes it."""
    return {
        "domain": audit.domain,
        "supervisor": audit.supervisor,
        "insecure": list(audit.insecure),
        "devices": audit.devices,
        "cgroup": audit.cgroup or None,
        "ok": not audit.failures,
        "failures": list(audit.failures),
        "processes": [_process_as_json(one) for one in audit.processes],
    }


def _process_as_json(one: Audited) -> dict[str, object]:
    process = one.process
    return {
        "role": one.role,
        "pid": process.pid,
        "parent": process.parent,
        "name": _plain(os.fsencode(process.name)),
        "program": _plain(os.fsencode(process.program)) or None,
        "argv": [_plain(word) for word in process.argv],
        "uids": list(process.uids),
        "gids": list(process.gids),
        "groups": list(process.groups),
        "capabilities": {
            name: list(capability_names(mask))
            for name, mask in zip(CAPABILITY_SETS, process.capabilities, strict=True)
        },
        "no_new_privs": process.no_new_privs,
        "seccomp": {
            "mode": process.seccomp,
            "filters": process.filters,
            "own_filters": one.filters,
            "calls_allowed": one.calls,
            "readable": process.programs is not None,
        },
        "namespaces": {
            name: {"id": process.namespaces.get(name), "own": _is_own(one, name)} for name in NAMESPACES
        },
        "dumpable": process.dumpable,
        "core_limit": process.core_limit,
        "file_limit": process.file_limit,
        "threads": process.threads,
        "limits": {
            "cgroup": process.limits.path or None,
            "memory": process.limits.memory,
            "threads": process.limits.processes,
        },
        "memory": {"rss_kib": process.rss_kib, "pss_kib": process.pss_kib},
        "files": None
        if process.files is None
        else [
            {"fd": file.number, "target": _plain(os.fsencode(file.target)), "access": file.access}
            for file in process.files
        ],
        "mounts": [
            {
                "device": mount.device,
                "path": _plain(os.fsencode(mount.path)),
                "type": mount.kind,
                "writable": mount.writable,
            }
            for mount in process.mounts
        ],
        "not_readable": list(process.hidden),
        "ok": not one.failures,
        "failures": list(one.failures),
    }


def _is_own(one: Audited, name: str) -> bool | None:
    if name in one.own:
        return True
    return False if name in one.process.namespaces else None


def _plain(word: bytes) -> str:
    """Make what a process may choose itself safe to show, and short."""
    return escape_untrusted(word, 4096)


def in_words(audit: Audit, *, color: bool = False, files: bool = False) -> str:
    """Return the table for people, with its failures below it."""
    rows = [_HEADINGS, *(_row(one) for one in audit.processes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = [f"domain {audit.domain}, supervisor {audit.supervisor}"]
    for row, failed in zip(rows, (False, *(bool(one.failures) for one in audit.processes)), strict=True):
        line = "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
        lines.append(red(line, color=color and failed))
    for one in audit.processes:
        if one.process.hidden:
            what = ", ".join(one.process.hidden)
            lines.append(f"{one.role} ({one.process.pid}): only root can read: {what}")
    if any(one.calls is not None and one.process.programs is None for one in audit.processes):
        lines.append("the filters are counted: whether they are those of the policies only root can read")
    if files:
        lines += [line for one in audit.processes for line in _file_lines(one)]
    if audit.devices in NOT_APART:
        line = f"GIVEN UP by --devices={audit.devices}: {NOT_APART[audit.devices]}"
        lines.append(red(line, color=color))
    if not audit.cgroup:
        lines.append("no cgroup limits the memory they take (`cloche doctor` says why)")
    for part in audit.insecure:
        lines.append(red(f"GIVEN UP by --insecure-no-jail={_plain(os.fsencode(part))}", color=color))
    lines += [red(f"FAILED {line}", color=color) for line in audit.failures]
    if not audit.failures:
        lines.append(f"all {len(audit.processes)} processes are held as their policies say")
    return "\n".join(lines) + "\n"


def _row(one: Audited) -> tuple[str, ...]:
    process = one.process
    return (
        one.role,
        str(process.pid),
        f"{process.uids[1]}:{process.gids[1]}",
        _capabilities(one),
        "yes" if process.no_new_privs else "no",
        str(one.filters),
        "-" if one.calls is None else str(one.calls),
        _namespaces(one),
        {True: "no", False: "yes", None: "?"}[process.dumpable],
        "?" if process.files is None else str(len(process.files)),
        _memory(process),
        "FAILED" if one.failures else "ok",
    )


def _capabilities(one: Audited) -> str:
    mask = 0
    for capabilities in one.process.capabilities[1:3]:
        mask |= capabilities
    names = capability_names(mask)
    return ",".join(names) if 0 < len(names) < 4 else str(len(names) or "none")


def _namespaces(one: Audited) -> str:
    if len(one.own) == len(NAMESPACES):
        return "all own"
    unknown = "" if len(one.process.namespaces) == len(NAMESPACES) else ",..."
    return (",".join(one.own) or "the host's") + unknown


def _memory(process: Process) -> str:
    most = process.limits.memory
    return f"{process.rss_kib / 1024:.1f}" + ("" if most is None else f" of {most >> 20}") + " MiB"


def _file_lines(one: Audited) -> list[str]:
    lines = [f"{one.role} ({one.process.pid}): {one.process.program or one.process.name}"]
    lines[0] = escape_untrusted(os.fsencode(lines[0]), _LONGEST_WORD)
    if one.process.file_limit is not None:
        lines.append(f"  no file becomes larger than {one.process.file_limit} bytes")
    for file in one.process.files or ():
        target = escape_untrusted(os.fsencode(file.target), _LONGEST_WORD)
        lines.append(f"  {file.number:>4}  {file.access:<5}{target}")
    return lines
