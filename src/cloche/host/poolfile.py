"""What the user has set for the pool (layer 3a): ``pool.toml`` in the configuration directory.

It is read by whoever fills the pool or shows it, never by a run. ``cloche pool set`` writes it; a person may as well.
"""

from __future__ import annotations

import os

from cloche.errors import UsageError
from cloche.host import xdg
from cloche.host.pool import settings_path
from cloche.plan.pool import MOST_MEMBERS, Setting

_HEAD = "# The machines that wait for `cloche run` (`cloche pool --help`).\n"
_FIELDS = {"keep": int, "memory_mib": int, "cpus": int, "kernel": str, "share_later": bool}


def read() -> tuple[Setting, ...]:
    """Return what is set; nothing when there is no such file.

    Raises:
        UsageError: Somebody has written into it what cannot be, or it is not the caller's alone.
    """
    import tomllib

    try:
        with open(settings_path(), "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                raise UsageError(
                    f"{settings_path()} is not yours alone", hint=f"chmod go-w {settings_path()}"
                )
            table = tomllib.load(file)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise _wrong(str(error)) from None
    rows = table.pop("machines", [])
    if table or not isinstance(rows, list):
        raise _wrong("it has [[machines]] and nothing else")
    return check(tuple(_read_row(row) for row in rows))


def _read_row(row: object) -> Setting:
    if not isinstance(row, dict) or "keep" not in row:
        raise _wrong("each of [[machines]] says how many to keep")
    for name, value in row.items():
        if type(value) is not _FIELDS.get(name):
            raise _wrong(f"{name} = {value!r} is nothing that [[machines]] can have")
    return Setting(**row)


def _wrong(why: str) -> UsageError:
    return UsageError(
        f"{settings_path()} cannot be used: {why}", hint="`cloche pool set` writes it anew; delete it."
    )


def check(settings: tuple[Setting, ...]) -> tuple[Setting, ...]:
    """Return the settings if they can be.

    Raises:
        UsageError: Too many machines, or less than none.
    """
    if any(one.keep < 0 for one in settings) or sum(one.keep for one in settings) > MOST_MEMBERS:
        raise UsageError(
            f"a pool has at most {MOST_MEMBERS} machines",
            hint="Each takes its memory: `cloche pool list` says how much.",
        )
    return settings


def write(settings: tuple[Setting, ...]) -> None:
    """Put down what is set, in place of what was; where nothing is, there is no file.

    Raises:
        UsageError: As ``check``.
        HostError: The directory cannot be used.
        OSError: There is no room.
    """
    check(settings)
    if not settings:
        try:
            os.unlink(settings_path())
        except FileNotFoundError:
            pass
        return
    xdg.ensure_directory(xdg.config_dir())
    lines = [_HEAD]
    for setting in settings:
        lines.append("\n[[machines]]\n")
        for name, value in setting._asdict().items():
            if value is not None:
                lines.append(f"{name} = {_format(value)}\n")
    fresh = f"{settings_path()}.{os.getpid()}"
    with open(fresh, "w", encoding="utf-8") as file:
        file.writelines(lines)
    os.replace(fresh, settings_path())


def _format(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    import json

    return json.dumps(value)  # a string of TOML is one of JSON
