"""A plan in words (layer 5): what ``--dry-run`` prints."""

from __future__ import annotations

from cloche.host.text import escape_untrusted
from cloche.model.jail import BindFlag, JailFlag, Namespace
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.model.plan import LaunchPlan, ProcessPlan


def describe_plan(plan: LaunchPlan) -> str:
    """Return the plan, one fact a line."""
    lines = [f"driver      {plan.driver} ({plan.isolation})"]
    machine = plan.machine
    if machine is not None:
        lines.append(
            f"machine     {machine.kernel.machine}, {machine.accelerator}, {machine.cpus} CPU, {machine.memory_mib} MiB"
        )
        lines.append(f"kernel      {machine.kernel.ident} ({machine.kernel.kind}): {machine.kernel.path}")
        lines.append(f"initramfs   {machine.kernel.initrd}")
    for endpoint in plan.endpoints:
        lines.append(f"socket      {endpoint.name} ({endpoint.kind})")
    for process in plan.processes:
        lines += _describe_process(process)
    lines.append("guest")
    lines += [f"    {_words(type(step).__name__, step)}" for step in plan.setup]
    command = plan.command
    lines.append("command")
    lines.append(f"    argv    {' '.join(_quote(word) for word in command.argv[:64])}")
    lines.append(f"    cwd     {_quote(command.cwd)}")
    lines.append(f"    user    {command.uid}:{command.gid}, umask {command.umask:04o}")
    lines += [f"    env     {_quote(word)}" for word in command.env]
    return "\n".join(lines) + "\n"


def _describe_process(process: ProcessPlan) -> list[str]:
    jail = process.jail
    lines = [f"process     {process.name}" + (f" ({process.executable})" if process.executable else "")]
    lines.append(f"    argv    {' '.join(_quote(word) for word in process.argv)}")
    for descriptor in process.descriptors:
        lines.append(f"    fd {descriptor.number:<4} {descriptor.endpoint} ({descriptor.side})")
    namespaces = ", ".join(flag.name.lower() for flag in Namespace if jail.namespaces & flag and flag.name)
    flags = ", ".join(flag.name.lower() for flag in JailFlag if jail.flags & flag and flag.name)
    lines.append(f"    jail    namespaces: {namespaces}; {flags}; capabilities {jail.keep_caps:#x}")
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
        elif field == "flags" and name == "Bind" and isinstance(value, int):
            words.append(",".join(flag.name.lower() for flag in BindFlag if value & flag and flag.name))
        else:
            words.append(f"{field}={value}")
    return " ".join(words)


def _quote(word: bytes) -> str:
    text = escape_untrusted(word, 300)
    return text if text and " " not in text else f"'{text}'"
