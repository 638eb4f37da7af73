"""Opening ``cloche.toml`` (layer 3a), where ``xdg.has_settings`` says that there may be one.

Whoever can write settings can have a run share the caller's home. So a file counts only if it, and the directory that
holds its name, belong to the caller or to root and nobody else can write to them; otherwise nothing starts.
"""

from __future__ import annotations

import os
import stat

from cloche.errors import SettingsError
from cloche.host import xdg
from cloche.record import Record

#: Bytes. Settings are written by people.
MOST_BYTES = 64 * 1024


class Opened(Record):
    """A file of settings that is there; ``fd`` is the holder's to close."""

    level: str
    path: str
    fd: int


def open_settings() -> list[Opened]:
    """Open every file that is there.

    Raises:
        SettingsError: One cannot be read or trusted.
    """
    return [opened for level, path in xdg.settings_places() if (opened := open_one(level, path)) is not None]


def open_one(level: str, path: str, *, trusted: bool = True) -> Opened | None:
    """Open one file; None when it is not there.

    Args:
        level: Whose settings it holds.
        path: Where it is.
        trusted: Whether it is going to be used, so that nobody else may be able to write it.

    Raises:
        SettingsError: It cannot be read or trusted.
    """
    try:
        # A pipe without a writer, or a terminal, is not waited for.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SettingsError(
            f"cannot read the settings in {path}: {error.strerror}",
            hint="See that you may read it, or move it away.",
        ) from None
    try:
        status = os.fstat(fd)
        _check_kind(path, status)
        if trusted:
            _check_trust(path, status)
    except BaseException:
        os.close(fd)
        raise
    return Opened(level, path, fd)


def _check_kind(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise SettingsError(f"{path} is no file", hint="Settings are read from a file; move it away.")
    if status.st_size > MOST_BYTES:
        raise SettingsError(
            f"the settings in {path} are not used: {status.st_size} bytes are too many",
            hint=f"At most {MOST_BYTES} bytes are read.",
        )


def _check_trust(path: str, status: os.stat_result) -> None:
    directory = os.path.dirname(os.path.abspath(path))
    for name, found in ((path, status), (directory, os.stat(directory))):
        if found.st_uid not in (0, os.geteuid()):
            raise SettingsError(
                f"the settings in {path} are not used: {name} belongs to another user (number {found.st_uid})",
                hint="Whoever can write settings can share your files: take them over (chown), or move them away.",
            )
        if found.st_mode & 0o022:
            raise SettingsError(
                f"the settings in {path} are not used: others than you can write to {name}",
                hint=f"chmod go-w {name}",
            )


def read(opened: Opened) -> str:
    """Return the text of an open file, and close it.

    Raises:
        SettingsError: It cannot be read, or is not UTF-8.
    """
    try:
        data = os.read(opened.fd, MOST_BYTES + 1)
    except OSError as error:
        raise SettingsError(
            f"cannot read the settings in {opened.path}: {error.strerror}",
            hint="Look at the disk that it is on.",
        ) from None
    finally:
        os.close(opened.fd)
    return decode(data, opened.path)


def decode(data: bytes, path: str) -> str:
    """Return the text of a file's content.

    Raises:
        SettingsError: It is not UTF-8, or too long.
    """
    if len(data) > MOST_BYTES:
        raise SettingsError(
            f"the settings in {path} are too long", hint=f"At most {MOST_BYTES} bytes are read."
        )
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line = before.count(b"\n") + 1
        column = error.start - before.rfind(b"\n")
        raise SettingsError(
            f"{path}:{line}:{column}: the byte {data[error.start]:#04x} is not UTF-8",
            hint="Settings are text in UTF-8.",
        ) from None
