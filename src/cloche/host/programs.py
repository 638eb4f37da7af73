"""Looking a program up before a machine is started for it (layer 3a).

Most mistakes are a name typed wrong: that is told at once and not after a boot. Only what is certain is refused here;
the guest has the last word.
"""

from __future__ import annotations

import os

from cloche.errors import CommandNotExecutableError, CommandNotFoundError
from cloche.host.text import escape_untrusted
from cloche.plan.guest import is_below
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.model.guest import GuestCommand


def find_program(command: GuestCommand, shown: tuple[bytes, ...]) -> bytes:
    """Look for the program where the guest will; empty when that is not known, or it is named by a path.

    A program that certainly does not exist in the guest, or cannot be executed there, is refused.

    Args:
        command: What is to be started.
        shown: The trees that the guest sees at the same place and with the same content as the host.

    Raises:
        CommandNotFoundError: It is in none of the directories of PATH, or its path does not exist.
        CommandNotExecutableError: It is a directory, or nobody may execute it.
    """
    name = command.argv[0]
    text = escape_untrusted(name, 200)
    if b"/" not in name:
        path = next((word[5:] for word in command.env if word.startswith(b"PATH=")), b"")
        directories = [part for part in path.split(b":") if part]
        if not name:
            raise CommandNotFoundError(
                "the program's name is empty", hint="Name a program, for example: cloche run -- uname -a"
            )
        if any(not is_below(part, shown) for part in directories):
            return b""
        for part in directories:
            if os.path.lexists(os.path.join(part, name)):
                return os.path.join(part, name)
        raise CommandNotFoundError(
            f"{text} was not found in the guest",
            hint="It is in no directory of PATH that the guest sees; share its directory with --here or --share.",
        )
    full = os.path.normpath(os.path.join(command.cwd, name))
    if not is_below(full, shown):
        home = next((word[5:] for word in command.env if word.startswith(b"HOME=")), b"")
        # Only a program that starts in the home has left the caller's directory behind.
        if command.cwd == home and not os.path.isabs(name) and os.path.lexists(name):
            raise CommandNotFoundError(
                f"{text} was not found in the guest", hint="Share the working directory with --here."
            )
        return b""
    if not os.path.lexists(full):
        raise CommandNotFoundError(
            f"{text} was not found in the guest", hint="It does not exist on the host either."
        )
    if os.path.isdir(full):
        raise CommandNotExecutableError(
            f"{text} is a directory and cannot be executed", hint="Name a program in it."
        )
    try:
        executable = os.stat(full).st_mode & 0o111
    except OSError:
        return b""
    if not executable:
        raise CommandNotExecutableError(
            f"{text} cannot be executed: it has no execute permission",
            hint=f"chmod +x {text}, or name its interpreter.",
        )
    return b""
