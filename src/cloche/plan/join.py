"""A program that joins the one a domain was started for (layer 2, pure)."""

from __future__ import annotations

from cloche.errors import UsageError
from cloche.plan.guest import ROOT_PATH, encode
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.model.facts import User
    from cloche.model.guest import GuestCommand


def build_join(
    base: GuestCommand,
    argv: tuple[bytes, ...],
    env: tuple[tuple[bytes, bytes], ...],
    workdir: str,
    person: User | None,
) -> GuestCommand:
    """Return a program that joins the one a domain was started for, and inherits what that has.

    Args:
        base: The domain's own program.
        argv: The program and its arguments.
        env: Variables besides those of ``base``.
        workdir: Where it starts; empty for where ``base`` does, or the home of ``person``.
        person: Whom it runs as, when that is somebody else.

    Raises:
        UsageError: What no program can be given.
    """
    if not argv or not argv[0]:
        raise UsageError("no program was named", hint="For example: cloche exec DOMAIN -- ps aux")
    if any(b"\0" in word for word in (*argv, encode(workdir), *(part for pair in env for part in pair))):
        raise UsageError("a word holds a NUL byte, which no program can be given")
    if any(not name or b"=" in name for name, _ in env):
        raise UsageError("an environment variable has no name, or = in it", hint="Write NAME=VALUE.")
    table = {name: value for name, _, value in (variable.partition(b"=") for variable in base.env)}
    cwd = base.cwd
    if person is not None and person.uid != base.uid:
        cwd = encode(person.home)
        path = ROOT_PATH if person.uid == 0 else table[b"PATH"]
        table |= {b"HOME": cwd, b"SHELL": encode(person.shell), b"PATH": path}
        table[b"USER"] = table[b"LOGNAME"] = encode(person.name)
        base = base._replace(uid=person.uid, gid=person.gid, groups=(person.gid,))
    table.update(env)
    if workdir:
        cwd = encode(workdir) if workdir.startswith("/") else cwd.rstrip(b"/") + b"/" + encode(workdir)
    return base._replace(
        argv=argv,
        env=tuple(name + b"=" + value for name, value in table.items()),
        cwd=cwd,
        strace=False,
        program=b"",
        ignored=0,
    )
