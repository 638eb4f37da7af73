"""Where cloche keeps its files (layer 3a): the XDG base directories, each made on demand and private to the user."""

from __future__ import annotations

import os
import stat

from cloche.errors import HostError
from cloche.model.options import Level

#: What files of settings are called, and the administrator's, which is weaker than those of XDG_CONFIG_DIRS.
SETTINGS = "cloche.toml"
_SYSTEM_SETTINGS = f"/etc/cloche/{SETTINGS}"


def _home() -> str:
    home = os.environ.get("HOME", "")
    if home.startswith("/"):
        return home
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        raise HostError(
            "no home directory is known for this user", hint="Set HOME to a directory of yours."
        ) from None


def _base(variable: str, default: str) -> str:
    # The specification says that relative paths are invalid and to be ignored.
    value = os.environ.get(variable, "")
    return value if value.startswith("/") else os.path.join(_home(), default)


def cache_dir() -> str:
    """Return the directory for what can be made again: kernels, initramfs, probe results. It may not exist yet."""
    return os.path.join(_base("XDG_CACHE_HOME", ".cache"), "cloche")


def config_dir() -> str:
    """Return the directory for what the user has set. It may not exist yet."""
    return os.path.join(_base("XDG_CONFIG_HOME", ".config"), "cloche")


def settings_places() -> list[tuple[str, str]]:
    """Return level and path of every file of settings that a run without a profile reads, the weakest first."""
    places = [(Level.SYSTEM, _SYSTEM_SETTINGS)]
    # The specification's order is that of preference.
    for base in reversed((os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")):
        if base.startswith("/"):
            places.append((Level.SYSTEM, f"{base.rstrip('/')}/cloche/{SETTINGS}"))
    places.append((Level.USER, f"{config_dir()}/{SETTINGS}"))
    return places


def has_settings() -> bool:
    """Tell whether any of these files may be there: on the way to every start, one failed system call for each."""
    for _, path in settings_places():
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            pass  # whoever reads it says what is wrong
        return True
    return False


def data_dir() -> str:
    """Return the directory for what cannot be made again (profiles). It may not exist yet."""
    return os.path.join(_base("XDG_DATA_HOME", ".local/share"), "cloche")


def state_dir() -> str:
    """Return the directory for what outlives a run but is no profile: logs, how domains ended. It may not exist yet."""
    return os.path.join(_base("XDG_STATE_HOME", ".local/state"), "cloche")


def runtime_dir() -> str:
    """Return the directory of run directories: below XDG_RUNTIME_DIR, /run/user or, without both, the cache.

    Somebody else's directory is never used, whatever the variable says.
    """
    for candidate in (os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{os.getuid()}"):
        if candidate.startswith("/") and is_private_directory(candidate):
            return os.path.join(candidate, "cloche")
    return os.path.join(cache_dir(), "run")


def is_private_directory(path: str) -> bool:
    """Tell whether ``path`` is a directory that belongs to the caller and that only he can write to."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022


def ensure_directory(path: str) -> str:
    """Make ``path`` (0700) and its parents when missing, and return it.

    Raises:
        HostError: It cannot be made, or it is somebody else's.
    """
    try:
        _make_directories(path)
    except OSError as error:
        raise HostError(
            f"cannot make the directory {path}: {error.strerror}",
            hint="Make it writable for you, or point XDG_CACHE_HOME and XDG_RUNTIME_DIR to a place that is.",
        ) from None
    if not is_private_directory(path):
        raise HostError(
            f"the directory {path} is not yours alone, so cloche does not trust it",
            hint=f"chmod go-w {path}, and see that it belongs to you.",
        )
    return path


def _make_directories(path: str) -> None:
    # os.makedirs would give the parents whatever mode the caller's mask leaves.
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    if parent != path:
        _make_directories(parent)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
