"""A plan in words (layer 5): what ``--dry-run`` prints."""

from __future__ import annotations

import os

from cloche.host.text import escape_untrusted
from cloche.model.guest import MS_BIND, MS_NOATIME, MS_NODEV, MS_NOSUID, MS_RDONLY, MS_REC, MS_REMOUNT
from cloche.model.jail import INSECURE_PARTS, BindFlag, JailFlag, Namespace
from cloche.model.machine import NOT_APART
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.model.plan import LaunchPlan, ProcessPlan

_MOST_WORDS = 64
_LONGEST_WORD = 4096
#: Bytes of one instruction of a filter (struct sock_filter).
_INSTRUCTION = 8
#: Names of resource limits, and what they count in.
_LIMITS = {1: ("size of a file", " bytes"), 4: ("core file", " bytes"), 7: ("open files", "")}
_MOUNT_FLAGS = (
    (MS_RDONLY, "rdonly"),
    (MS_NOSUID, "nosuid"),
    (MS_NODEV, "nodev"),
    (MS_REMOUNT, "remount"),
    (MS_NOATIME, "noatime"),
    (MS_BIND, "bind"),
    (MS_REC, "rec"),
)


def describe_plan(plan: LaunchPlan, unsaveable: str = "") -> str:
    """Return the plan, one fact a line; ``unsaveable`` is why its domain cannot be saved, empty if it can."""
    lines = [f"driver      {plan.driver} ({plan.isolation})"]
    machine = plan.machine
    if machine is not None:
        lines.append(
            f"machine     {machine.kernel.machine}, {machine.accelerator}, {machine.cpus} CPU, {machine.memory_mib} MiB"
        )
        lines.append(
            f"kernel      {machine.kernel.ident} ({machine.kernel.kind}): {_text(machine.kernel.path)}"
        )
        lines.append(f"initramfs   {_text(machine.kernel.initrd)}")
        begins = (
            f"from the template {_text(plan.template.directory)}" if plan.template else f"cold: {plan.cold}"
        )
        lines.append(f"start       {begins}")
    if plan.layer is not None:
        lines.append(f"profile     {plan.layer.name}")
    if plan.name:
        lines.append(f"name        {plan.name}")
    lines.append(f"saveable    {f'no: {unsaveable}' if unsaveable else 'yes'}")
    if plan.devices in NOT_APART:
        lines.append(f"devices     {NOT_APART[plan.devices]}")
    for part in plan.insecure:
        lines.append(f"insecure    without {INSECURE_PARTS[part]}")
    if plan.cgroup:
        lines.append(f"cgroups     below {_text(plan.cgroup)}")
    for endpoint in plan.endpoints:
        lines.append(f"socket      {endpoint.name} ({endpoint.kind})")
    for process in plan.processes:
        lines += _describe_process(process)
    lines.append("guest")
    lines += [f"    {_words(type(step).__name__, step)}" for step in plan.setup]
    command = plan.command
    lines.append("command")
    rest = f" ... and {len(command.argv) - _MOST_WORDS} more" if len(command.argv) > _MOST_WORDS else ""
    lines.append(f"    argv    {' '.join(_quote(word) for word in command.argv[:_MOST_WORDS])}{rest}")
    lines.append(f"    cwd     {_quote(command.cwd)}")
    lines.append(f"    user    {command.uid}:{command.gid}, umask {command.umask:04o}")
    if command.ignored or command.nice:
        lines.append(f"    signals ignored {command.ignored:#x}, niceness {command.nice}")
    lines += [f"    env     {_quote(word)}" for word in command.env]
    return "\n".join(lines) + "\n"


def _describe_process(process: ProcessPlan) -> list[str]:
    jail = process.jail
    lines = [
        f"process     {process.name}" + (f" ({_text(process.executable)})" if process.executable else "")
    ]
    lines.append(f"    argv    {' '.join(_quote(word) for word in process.argv)}")
    for descriptor in process.descriptors:
        lines.append(f"    fd {descriptor.number:<4} {descriptor.endpoint} ({descriptor.side})")
    for file in process.files:
        lines.append(
            f"    fd {file.number:<4} {_text(file.path)} ({'read-write' if file.writable else 'read-only'})"
        )
    for connection in process.connections:
        lines.append(f"    fd {connection.number:<4} connected with {_text(connection.path)}")
    namespaces = ", ".join(flag.name.lower() for flag in Namespace if jail.namespaces & flag and flag.name)
    flags = ", ".join(flag.name.lower() for flag in JailFlag if jail.flags & flag and flag.name)
    lines.append(f"    jail    namespaces: {namespaces}; {flags}; capabilities {jail.keep_caps:#x}")
    instructions = len(jail.seccomp) // _INSTRUCTION
    lines.append(
        f"    calls   {f'filter of {instructions} instructions' if instructions else 'not filtered'}"
    )
    for number, soft, hard in jail.rlimits:
        name, unit = _LIMITS.get(number, (f"limit {number}", ""))
        most = "" if soft == hard else f" (at most {hard}{unit})"
        lines.append(f"    limit   {name} {soft}{unit}{most}")
    if process.limits is not None:
        lines.append(f"    limit   memory {process.limits.memory} bytes")
        lines.append(f"    limit   processes {process.limits.processes}")
    for op in jail.root:
        lines.append(f"    root    {_words(type(op).__name__, op)}")
    return lines


def _words(name: str, op: tuple[object, ...]) -> str:
    fields = getattr(op, "_fields", ())
    words = [name.lower()]
    for field, value in zip(fields, op, strict=True):
        if isinstance(value, bytes):
            words.append(_quote(value) if field != "content" else f"({len(value)} bytes)")
        elif field == "mode" and isinstance(value, int):
            words.append(f"{value:04o}")
        elif field == "flags" and isinstance(value, int):
            words.append(_flags(name, value))
        else:
            words.append(f"{field}={value}")
    return " ".join(words)


def _flags(name: str, value: int) -> str:
    if name in ("Bind", "BindFd"):
        names = [flag.name.lower() for flag in BindFlag if value & flag and flag.name]
    else:
        names = [word for flag, word in _MOUNT_FLAGS if value & flag]
    return ",".join(names) or "-"


def _quote(word: bytes) -> str:
    text = escape_untrusted(word, _LONGEST_WORD)
    if text and not (" " in text or "'" in text):
        return text
    # Backslashes are doubled already, so this one cannot be mistaken.
    return "'" + text.replace("'", "\\'") + "'"


def _text(path: str) -> str:
    return _quote(os.fsencode(path))
