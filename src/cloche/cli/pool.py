"""``cloche pool`` (layer 6): machines that wait, warm, for the next ``run``."""

from __future__ import annotations

import os
import sys
import time

from cloche.cli.detach import begun, go_alone
from cloche.cli.listing import print_json
from cloche.domain import filling
from cloche.domain.control import wire
from cloche.errors import ClocheError, HostError, UsageError
from cloche.host import pool, poolfile, scheduling
from cloche.host.facts import collect_facts
from cloche.host.rundir import find_running
from cloche.lean import socket
from cloche.plan.pool import Setting
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.parser import Parsed
    from cloche.host.pool import Member

_UNIT = """\
# ~/.config/systemd/user/cloche-pool.service; then: systemctl --user enable --now cloche-pool
[Unit]
Description=Machines that wait for cloche run

[Service]
Type=oneshot
RemainAfterExit=yes
# What runs in a machine of the pool goes on; those that wait are ended by ExecStop.
KillMode=process
ExecStart={cloche} pool fill
ExecStop={cloche} pool clear

[Install]
WantedBy=default.target
"""


def set_(parsed: Parsed) -> int:
    """Handle ``cloche pool set``: write down how many machines of a kind are to wait, and fill the pool."""
    if "keep" not in parsed.values:
        raise UsageError(
            "nothing says how many machines are to wait", hint="For example: cloche pool set --keep 2"
        )
    given = parsed.values
    setting = Setting(
        keep=int(str(given["keep"])),
        memory_mib=given.get("memory"),  # type: ignore[arg-type]
        cpus=given.get("cpus"),  # type: ignore[arg-type]
        kernel=given.get("kernel"),  # type: ignore[arg-type]
        # Root's server of shares has rights of root's: a run that has none of its own does not get one unasked.
        share_later=bool(given.get("share_later", os.geteuid() != 0)),
    )
    before = poolfile.read()
    others = tuple(one for one in before if one.key != setting.key)
    _write((*others, setting) if setting.keep else others)
    try:
        return fill(parsed)
    except ClocheError:
        # What cannot be made should not be tried again by each run.
        _write(before)
        raise


def fill(parsed: Parsed) -> int:
    """Handle ``cloche pool fill``: make what is missing."""
    os.umask(0o077)
    background = bool(parsed.get("background"))
    usual = scheduling.current()
    if background:
        if usual.nice > 0:
            return 0  # a machine made by a nice process would stay as nice
        scheduling.give_way()
    try:
        filling.fill(lambda setting: _make(setting, usual, shown=not background), background=background)
    except ClocheError:
        if background:
            filling.note_failure(True)
        raise
    filling.note_failure(False)
    return 0


def _write(settings: tuple[Setting, ...]) -> None:
    try:
        poolfile.write(settings)
    except OSError as error:
        raise HostError(f"cannot write {pool.settings_path()}: {error.strerror}") from None


def _make(setting: Setting, usual: scheduling.Scheduling, *, shown: bool) -> None:
    facts = collect_facts()
    _make_template(setting)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        child = os.fork()
    except OSError as error:
        raise HostError(f"cannot start the supervisor of a machine: {error.strerror}") from None
    if child == 0:
        ours.close()
        from cloche.domain.member import serve

        go_alone(theirs, lambda caller: serve(setting, facts, usual, caller, begun))
    theirs.close()
    packet = ours.recv(wire.MAX_PACKET)
    ours.close()
    if not packet:
        os.waitpid(child, 0)
    ident = filling.heard(packet)
    if shown:
        sys.stdout.write(f"{ident}\n")
        sys.stdout.flush()


def _make_template(setting: Setting) -> None:
    """Make the template that such machines go on from, where there is none."""
    from cloche.domain.template import make_template

    make_template(setting.request(()), collect_facts())


def clear(parsed: Parsed) -> int:
    """Handle ``cloche pool clear``: end the machines that wait; with ``--forget`` make no new ones."""
    if parsed.get("forget"):
        _write(())
    count = filling.clear()
    sys.stdout.write(f"{count} machine{'s' * (count != 1)} ended\n")
    return 0


def list_(parsed: Parsed) -> int:
    """Handle ``cloche pool list``."""
    from cloche.domain.numbers import read_numbers

    running = {one.ident: one for one in find_running(waiting=True)}
    rows = []
    for member in pool.members():
        if member.state == pool.TAKEN or member.ident not in running:
            continue
        seen = filling.look(member) if member.state == pool.READY else None
        numbers = read_numbers(running[member.ident], guest=False)
        rows.append(
            {
                "domain": member.ident,
                "kind": member.key.partition("@")[0],
                "state": _state(member, seen.changed if seen else ""),
                "why": (seen.changed or None) if seen else None,
                "since": seen.since_s if seen else None,
                "memory_kib": numbers.memory_kib,
                "memory_is_estimate": numbers.is_estimate,
                "cpu_s": round(numbers.cpu_s, 2),
            }
        )
    settings = poolfile.read()
    if parsed.get("json"):
        set_now = [{**setting._asdict(), "kind": setting.key} for setting in settings]
        print_json({"machines": rows, "set": set_now})
        return 0
    for setting in settings:
        count = sum(row["kind"] == setting.key and row["state"] == "waiting" for row in rows)
        sys.stdout.write(f"{_describe(setting)}: {count} of {setting.keep} wait\n")
    if not settings:
        sys.stdout.write("No pool is set: cloche pool set --keep 2\n")
    for row in rows:
        since = time.strftime("%H:%M:%S", time.localtime(int(str(row["since"])))) if row["since"] else "-"
        why = f" ({row['why']})" if row["why"] else ""
        sys.stdout.write(
            f"{row['domain']}  {row['state']}{why}  since {since}  {int(str(row['memory_kib'])) >> 10} MiB\n"
        )
    return 0


def _state(member: Member, changed: str) -> str:
    if member.state == pool.MAKING:
        return "making"
    return "out of date" if changed else "waiting"


def _describe(setting: Setting) -> str:
    words = [f"{setting.memory_mib} MiB" if setting.memory_mib else "the usual memory"]
    words.append(f"{setting.cpus or 1} CPU")
    if setting.kernel:
        words.append(f"kernel {setting.kernel}")
    words.append("takes shares" if setting.share_later else "takes no shares")
    return ", ".join(words)


def unit(parsed: Parsed) -> int:
    """Handle ``cloche pool unit``: print a systemd user unit that fills the pool at login."""
    del parsed
    sys.stdout.write(_UNIT.format(cloche=unit_word(os.path.realpath(sys.argv[0]))))
    return 0


def unit_word(path: str) -> str:
    """Return a program's path as a systemd unit writes it (systemd.service(5), "Command lines").

    Raises:
        UsageError: It holds a line's end, which no unit can.
    """
    if not path.isprintable():
        raise UsageError("the path of cloche cannot stand in a unit", hint="Install it elsewhere.")
    for special, escaped in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%")):
        path = path.replace(special, escaped)
    return f'"{path}"'
