"""Editing a file of settings (layer 6): what is wrong is never put in the place of what was right."""

from __future__ import annotations

import os
import sys

from cloche import log
from cloche.domain.settings import describe, read_text
from cloche.errors import SettingsError
from cloche.host import settings_files, xdg
from cloche.host.process import run_in_terminal
from cloche.model.settings import all_keys
from cloche.profile.commented import commented

#: Tried in this order when neither VISUAL nor EDITOR is set; the first is Debian's choice of its administrator.
_EDITORS = ("editor", "nano", "vi")


def edit(level: str, path: str) -> int:
    """Have the user edit a copy of the file, and put it in the file's place when it is right.

    Raises:
        SettingsError: It is not right, or the editor has failed, or the file was changed meanwhile: it is as it was.
    """
    # A link stays a link: what it leads to is changed.
    real = os.path.realpath(path)
    before = _content(level, real)
    keys = all_keys()
    old = commented(keys.values(), level).encode() if before is None else before
    if before is None:
        xdg.ensure_directory(os.path.dirname(real))
    copy = os.path.join(os.path.dirname(real), f".{os.getpid()}.{xdg.SETTINGS}")
    _write(copy, old, real)
    try:
        new = _edit_until_right(copy, level, path, old)
        if new is None:
            log.notice("nothing was changed")
            return 0
        if _content(level, real) != before:
            raise _refused(path, copy, "somebody else has changed it meanwhile")
        os.replace(copy, real)
    finally:
        try:
            os.unlink(copy)
        except FileNotFoundError:
            pass
    return 0


def _edit_until_right(copy: str, level: str, path: str, old: bytes) -> bytes | None:
    """Return what the user has written, None when it is what it was."""
    while True:
        status = run_in_terminal((*_editor(), copy))
        if status:
            raise SettingsError(f"the editor has ended with status {status}: {path} is as it was")
        with open(copy, "rb") as file:
            new = file.read(settings_files.MOST_BYTES + 1)
        if new == old:
            return None
        try:
            _, problems = read_text(settings_files.decode(new, path), level, path, all_keys())
        except SettingsError as error:
            wrong = [error.message]
        else:
            wrong = [f"{describe(path, problem)} ({problem.hint})" for problem in problems]
        if not wrong:
            return new
        for line in wrong:
            log.notice(line)
        if not _again():
            raise _refused(path, copy, "what was written is wrong")


def _again() -> bool:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    os.write(2, b"cloche: edit it again? [Y/n] ")
    return sys.stdin.readline().strip().lower() in ("", "y", "yes")


def _refused(path: str, copy: str, why: str) -> SettingsError:
    kept = f"{path}.refused"
    os.replace(copy, kept)
    return SettingsError(f"{path} is as it was: {why}", hint=f"What you have written is in {kept}.")


def _editor() -> tuple[str, ...]:
    import shlex
    import shutil

    words = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    try:
        chosen = tuple(shlex.split(words or ""))
    except ValueError:
        raise SettingsError(f"{words!r} is no command for an editor: a quote is missing") from None
    if chosen:
        return chosen
    found = next((name for name in _EDITORS if shutil.which(name)), None)
    if found is None:
        raise SettingsError("no editor was found", hint="Set VISUAL or EDITOR to one that is installed.")
    return (found,)


def _content(level: str, path: str) -> bytes | None:
    opened = settings_files.open_one(level, path)
    if opened is None:
        return None
    with os.fdopen(opened.fd, "rb") as file:
        return file.read(settings_files.MOST_BYTES + 1)


def _write(copy: str, content: bytes, real: str) -> None:
    try:
        mode = os.stat(real).st_mode & 0o755
    except FileNotFoundError:
        mode = 0o600
    try:
        fd = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise SettingsError(f"cannot write beside {real}: {error.strerror}") from None
    with os.fdopen(fd, "wb") as file:
        os.fchmod(fd, mode)
        file.write(content)
