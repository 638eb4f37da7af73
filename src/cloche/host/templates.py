"""The templates there are (layer 3a): saved machines in the cache, each found by what it was made of.

A template is a directory ``$XDG_CACHE_HOME/cloche/templates/NAME/`` (0700) with ``memory`` (sparse), ``state`` and
``info``. It appears whole, by a rename, and is never changed afterwards. ``info`` begins with all that a run must have
in common with it, word for word (:func:`describe`); what differs in one word is another template. So a change of
QEMU, kernel, agent or host makes a new one, and the old one is removed some time later.

This module is on the way to every start: some calls of ``stat`` and one small read.
"""

from __future__ import annotations

import os
import stat

from cloche.host import xdg
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Iterable

MEMORY, STATE, INFO = "memory", "state", "info"
#: Raised whenever what lies in a template, or what the agent does before it is saved, is to be made anew.
_FORMAT = "cloche-template 2"
_END = "end"
#: Directories that begin so are being made or taken away.
HIDDEN = "."
_KEPT = 5
_MOST_INFO = 1 << 20


class Found(Record):
    """A template that may be used.

    Attributes:
        directory: Its path.
        checksum: The CRC-32 of its state.
    """

    directory: str
    checksum: int


class Content(Record):
    """What ``info`` says of a template's files.

    Attributes:
        memory_bytes: The size of ``memory``, which is the guest's.
        used_bytes: How much of it is no hole.
        state_bytes: The size of ``state``.
        checksum: The CRC-32 of ``state``.
        memory_checksum: The CRC-32 of the parts of ``memory`` that are no holes.
    """

    memory_bytes: int
    used_bytes: int
    state_bytes: int
    checksum: int
    memory_checksum: int


def home() -> str:
    """Return the directory of the templates (not made here)."""
    return os.path.join(xdg.cache_dir(), "templates")


def describe(words: Iterable[bytes], steps: Iterable[str], files: Iterable[str], archive: str) -> str:
    """Return all that a template's machine consists of, one fact a line.

    Args:
        words: The arguments of its processes: machine, CPU, memory, the kernel's command line.
        steps: What was done in it before it was saved.
        files: The processes' programs and the kernel, told apart by inode, size and time.
        archive: The initramfs. It may be made twice; its name says what is in it (``kernel.initramfs``).

    Raises:
        OSError: A file is not there.
    """
    uname = os.uname()
    lines = [_FORMAT, f"host {uname.release} {uname.version}"]
    for path in files:
        status = os.stat(path)
        lines.append(f"file {path!r} {status.st_dev}:{status.st_ino} {status.st_size} {status.st_mtime_ns}")
    lines.append(f"archive {os.path.basename(archive)!r} {os.stat(archive).st_size}")
    lines += [f"word {word!r}" for word in words]
    lines += [f"step {step}" for step in steps]
    return "\n".join(lines) + "\n"


def name_of(description: str) -> str:
    """Return the name of the template's directory. Two with the same name replace each other: info tells them apart."""
    import zlib

    data = description.encode("utf-8", "surrogateescape")
    return f"{zlib.crc32(data):08x}{zlib.adler32(data):08x}"


def is_trusted() -> bool:
    """Tell whether the directory of the templates is the caller's alone, or not there yet."""
    return xdg.is_private_directory(home()) or not os.path.lexists(home())


def find(description: str) -> Found | None:
    """Return the template for a machine if there is one: whole, the caller's, and closed to others' writing."""
    directory = os.path.join(home(), name_of(description))
    if not xdg.is_private_directory(home()) or not _is_own(directory, stat.S_IFDIR):
        return None
    text, content = read_info(directory)
    if content is None or text != description:
        return None
    memory, state = os.path.join(directory, MEMORY), os.path.join(directory, STATE)
    if not (_is_own(memory, stat.S_IFREG) and _is_own(state, stat.S_IFREG)):
        return None
    sizes = os.stat(memory).st_size, os.stat(state).st_size
    if sizes != (content.memory_bytes, content.state_bytes):
        return None
    return Found(directory, content.checksum)


def _is_own(path: str, kind: int) -> bool:
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return (
        stat.S_IFMT(status.st_mode) == kind
        and status.st_uid == os.geteuid()
        and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )


def read_info(directory: str) -> tuple[str, Content | None]:
    """Return what a template was made of, and what its files are; None when its description is not whole."""
    try:
        fd = os.open(os.path.join(directory, INFO), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return "", None
    try:
        data = os.read(fd, _MOST_INFO)
    finally:
        os.close(fd)
    text, found, numbers = data.decode("utf-8", "surrogateescape").rpartition(f"{_END} ")
    words = numbers.split()
    if not found or len(words) != len(Content._fields) or not all(word.isdigit() for word in words):
        return "", None
    return text, Content(*map(int, words))


def format_info(description: str, content: Content) -> bytes:
    """Return what ``read_info`` reads."""
    text = f"{description}{_END} {' '.join(map(str, content))}\n"
    return text.encode("utf-8", "surrogateescape")


def names() -> list[str]:
    """Return the names of all templates, the newest first."""
    if not xdg.is_private_directory(home()):
        return []
    dated = []
    for entry in os.listdir(home()):
        path = os.path.join(home(), entry)
        if not entry.startswith(HIDDEN) and os.path.isdir(path):
            dated.append((os.lstat(path).st_mtime_ns, entry))
    return [entry for _, entry in sorted(dated, reverse=True)]


def remove(name: str) -> bool:
    """Delete a template; who has begun to use it is not disturbed. Returns whether there was one."""
    # Out of sight in one step, so that nobody finds half of it.
    hidden = os.path.join(home(), f"{HIDDEN}removed-{name}.{os.getpid()}")
    try:
        os.rename(os.path.join(home(), name), hidden)
    except OSError:
        return False
    _remove_tree(hidden)
    return True


def publish(prepared: str, name: str) -> None:
    """Put a whole template into its place; one that was there goes, and so do the oldest if there are many."""
    remove(name)
    os.rename(prepared, os.path.join(home(), name))
    for old in names()[_KEPT:]:
        remove(old)


def sweep() -> None:
    """Delete what others have begun and not finished. Nobody must be making a template (``domain.template``)."""
    for entry in os.listdir(home()):
        path = os.path.join(home(), entry)
        if entry.startswith(HIDDEN) and os.path.isdir(path) and not os.path.islink(path):
            _remove_tree(path)


def _remove_tree(path: str) -> None:
    """Delete a template's directory; somebody else may be doing the same."""
    from cloche.host.removal import remove_flat

    remove_flat(path)
