"""``cloche run`` with a profile (layer 6): takes it, or joins the domain that has it."""

from __future__ import annotations

import os

from cloche.domain.profiled import machine_words, take
from cloche.domain.request import build_request
from cloche.errors import ProfileError, UsageError
from cloche.host.profile_lock import BusyError
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.parser import Parsed
    from cloche.cli.terminal import Terminal
    from cloche.host.profile_lock import Hold, Note
    from cloche.model.request import RunRequest

#: What a program cannot have that joins another one's machine.
_NOT_JOINING = (
    ("timeout_s", "--timeout"),
    ("pids", "--pids"),
    ("strace", "--strace"),
    ("shell_on_failure", "--shell-on-failure"),
    ("boot_log", "--boot-log"),
    ("agent_log", "--agent-log"),
    ("name", "--name"),
)
#: Options whose name is not that of the request's field.
_OPTIONS = {
    "memory_mib": "--memory",
    "shares": "--share",
    "includes": "--include",
    "disks": "--disk",
    "network": "--net",
    "accelerator": "--accel",
    "insecure": "--insecure-no-jail",
}
#: How often a domain that is starting, or ending, is looked at again, in seconds; and how long.
_AGAIN_S, _PATIENCE_S = 0.03, 60.0


def begin(parsed: Parsed, name: str, terminal: Terminal) -> tuple[RunRequest, Hold | None, int | None]:
    """Take the profile for a run, or run its program in the domain that has it.

    Returns:
        The request; what is to be released at the end; the status of the program if it has joined.

    Raises:
        ProfileError: It cannot be used.
        BusyError: Another domain has it, and neither the command line nor the settings have named it.
    """
    is_named = bool(parsed.get("profile")) or parsed.get("default_profile") == name
    parsed.values["profile"] = name
    request = build_request(parsed.values, parsed.operands)
    waited = 0.0
    while True:
        try:
            request, hold = take(request)
        except BusyError as busy:
            if not is_named or waited > _PATIENCE_S:
                raise
            if busy.note is not None and busy.note.domain:
                check_same(request, name, busy.note)
                if _is_running(busy.note.domain):
                    return request, None, _join(request, busy.note.domain, terminal)
        else:
            return request, hold, None
        # It is starting, or ending: in a moment it can be joined, or taken.
        _pause()
        waited += _AGAIN_S


def check_same(request: RunRequest, name: str, note: Note) -> None:
    """Look whether a program can join the machine that has the profile: it asks for the same one.

    Raises:
        ProfileError: It does not, and in what.
        UsageError: It asks for what no program can have that joins.
    """
    for field, option in _NOT_JOINING:
        if getattr(request, field) != request._field_defaults[field]:
            raise UsageError(
                f"the profile {name} is in use by the domain {note.domain}, and what joins it cannot have {option}",
                hint=f"Leave it out, or end that domain first: cloche stop {note.domain}",
            )
    differing = set(machine_words(request)) ^ set(note.machine)
    if differing:
        fields = sorted({line.partition(" ")[0] for line in differing})
        options = ", ".join(_OPTIONS.get(field, f"--{field.replace('_', '-')}") for field in fields)
        raise ProfileError(
            f"the profile {name} is in use by the domain {note.domain}, whose machine differs in {options}",
            hint=f"Say the same to join it, or end that domain first: cloche stop {note.domain}",
        )


def _is_running(ident: str) -> bool:
    """Tell whether programs can join a domain."""
    from cloche.domain.control.client import Control
    from cloche.domain.control.life import AskLife, LifeNow
    from cloche.errors import DomainError

    try:
        with Control(ident) as control:
            return control.ask(AskLife(), LifeNow).state == "running"
    except DomainError:
        return False  # it has ended, or is about to


def _pause() -> None:
    from cloche.host.reactor import Reactor

    over: list[bool] = []
    with Reactor() as reactor:
        reactor.call_later(_AGAIN_S, lambda: over.append(True))
        reactor.run_until(lambda: bool(over))


def _join(request: RunRequest, ident: str, terminal: Terminal) -> int:
    from cloche import log
    from cloche.cli.join import execute
    from cloche.host.facts import collect_facts
    from cloche.plan.guest import build_command, resolve_user, shown_trees

    log.debug(f"joining the domain {ident}, which has the profile")
    facts = collect_facts()
    person = resolve_user(request, facts.user)
    command = build_command(request, facts, person, shown_trees(request))
    user = "root" if request.privileged else request.user or ""
    return execute(ident, terminal, command.argv, request.env, user=user, workdir=os.fsdecode(command.cwd))
