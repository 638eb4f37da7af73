"""Finding the programs cloche starts (layer 3a): its own Rust binaries, QEMU, bubblewrap."""

from __future__ import annotations

import os

from cloche.errors import HostError, LaunchError, MissingToolError
from cloche.host import xdg

#: Where distributions put programs; PATH is not asked, so that a stray file there is never run with a machine's rights.
_SYSTEM_PATH = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/libexec", "/usr/lib/qemu")

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
#: An installed package carries its binaries; a checkout builds them beside the sources.
_OWN_PATH = (os.path.join(_PACKAGE, "_bin"), os.path.join(_PACKAGE, "..", "..", "build", "bin"))


def find_system_tool(name: str) -> str:
    """Return the absolute path of a program of the distribution, or an empty string."""
    for directory in _SYSTEM_PATH:
        path = os.path.join(directory, name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return ""


def find_own_binary(name: str) -> str:
    """Return the path of one of cloche's Rust binaries, or an empty string."""
    for directory in _OWN_PATH:
        path = os.path.normpath(os.path.join(directory, name))
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return ""


def read_filter(name: str) -> bytes:
    """Return the compiled filter of system calls for one of the programs, or nothing.

    It lies beside cloche's own binaries, as ``NAME.filter``; ``policies/README.md`` says what it is.
    """
    for directory in _OWN_PATH:
        try:
            with open(os.path.join(directory, f"{name}.filter"), "rb") as file:
                return file.read()
        except OSError:
            continue
    return b""


def require_own_binary(name: str) -> str:
    """Return the path of one of cloche's Rust binaries.

    Raises:
        MissingToolError: It was not built.
    """
    path = find_own_binary(name)
    if not path:
        raise MissingToolError(
            name,
            tried=tuple(os.path.normpath(p) for p in _OWN_PATH),
            hint="Run `make setup` in cloche's directory.",
        )
    return path


def qemu_version(path: str, *, remember: bool = True) -> tuple[int, int]:
    """Return QEMU's (major, minor) version, or (0, 0) when it cannot be told.

    Asking costs a start of QEMU, so the answer is kept in the cache (if ``remember``), keyed by the file's identity.
    """
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0)
    key = f"{path} {status.st_dev}:{status.st_ino} {status.st_size} {status.st_mtime_ns}"
    cache = os.path.join(xdg.cache_dir(), "qemu-version")
    version = _parse_version(_recall(cache, key))
    if version == (0, 0):
        answer = _ask_version(path)
        version = _parse_version(answer)
        if remember and version != (0, 0):
            _remember(cache, f"{key}\n{answer}")
    return version


def _recall(cache: str, key: str) -> str:
    try:
        with open(cache, encoding="utf-8") as file:
            known, _, version = file.read(4096).partition("\n")
    except (OSError, UnicodeDecodeError):
        return ""  # nothing known yet, or not what was written
    return version if known == key else ""


def _ask_version(path: str) -> str:
    from cloche.host.process import run

    try:
        words = run((path, "--version"), timeout=20).stdout.decode("utf-8", "replace").split()
    except (LaunchError, MissingToolError):
        return ""
    return words[3] if words[:3] == ["QEMU", "emulator", "version"] and len(words) > 3 else ""


def _parse_version(text: str) -> tuple[int, int]:
    parts = text.strip().split(".")
    if len(parts) < 2 or not all(part.isascii() and part.isdigit() and len(part) < 5 for part in parts[:2]):
        return (0, 0)
    return (int(parts[0]), int(parts[1]))


def _remember(path: str, text: str) -> None:
    from cloche import log

    try:
        xdg.ensure_directory(os.path.dirname(path))
        temporary = f"{path}.{os.getpid()}"
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except (OSError, HostError) as error:
        log.debug(f"cannot keep {path}: {error}")
