"""Unpacking an archive that somebody hostile has made, into a directory of the caller's (layer 3a).

What a name in it says is never followed: every directory on the way to a file is opened by its own descriptor, one
component at a time, and none of them may be a link. So nothing is written outside of the place that was asked for,
whatever comes in which order. Left out, and told, are devices, links that lead outside, second names for what was not
unpacked, and names that are none; the bits that give rights (setuid, setgid) and attributes that are not the user's
own are taken away.
"""

from __future__ import annotations

import os
import stat

from cloche.errors import ClocheError, ProtocolError
from cloche.host.tarstream import DIRECTORY, FILE, LINK, SYMLINK, Member, TarReader
from cloche.host.text import escape_untrusted
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: So many refusals are told one by one.
_MOST_TOLD = 100
_MOST_PARTS = 1024


class _Refused(Exception):  # noqa: N818 - what is refused is left out, and nothing fails
    """A member that is left out, and why."""


def unpack(read: Callable[[int], bytes], top: bytes, parent: int, name: bytes) -> tuple[str, ...]:
    """Unpack an archive, all of whose members are ``top`` or below it, as ``name`` in the directory ``parent``.

    Args:
        read: Gives the archive's bytes (``TarReader``).
        top: The first component of every path in it; what has another one is left out.
        parent: A descriptor of the directory.
        name: One component.

    Returns:
        What was left out, a sentence each.

    Raises:
        ProtocolError: It is no archive, or ends too early. What came before is there.
        ClocheError: Something cannot be written.
    """
    with _Unpacker(top, parent, name) as unpacker:
        reader = TarReader(read)
        for member in reader:
            unpacker.take(member, reader)
        unpacker.finish()
        return tuple(unpacker.told)


class _Unpacker:
    def __init__(self, top: bytes, parent: int, name: bytes) -> None:
        self.told: list[str] = []
        self._top = top
        self._parent = parent
        self._name = name
        self._more = 0
        # Modes and times of directories are set when nothing is put into them any more.
        self._directories: dict[tuple[bytes, ...], Member] = {}
        self._files: set[tuple[int, int]] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._files.clear()

    def take(self, member: Member, reader: TarReader) -> None:
        try:
            parts = self._parts(member.path)
            self._place(member, parts, reader)
        except _Refused as refused:
            self._tell(member.path, str(refused))
        except OSError as error:
            path = escape_untrusted(member.path, 200)
            raise ClocheError(
                f"cannot write {path}: {error.strerror}",
                hint="Look at the room that is left, and at who may write there.",
            ) from None

    def _tell(self, path: bytes, why: str) -> None:
        if len(self.told) < _MOST_TOLD:
            self.told.append(f"{escape_untrusted(path, 200)} was left out: {why}")
        else:
            self._more += 1

    def _parts(self, path: bytes) -> tuple[bytes, ...]:
        """Return a member's path as components, the first of them where it is to be."""
        parts = path.rstrip(b"/").split(b"/")
        if path.startswith(b"/") or any(part in (b"", b".", b"..") or b"\0" in part for part in parts):
            raise _Refused("its name leads elsewhere")
        if len(parts) > _MOST_PARTS or any(len(part) > 255 for part in parts):
            raise _Refused("its name is too long")
        if parts[0] != self._top:
            raise _Refused("it was not asked for")
        return (self._name, *parts[1:])

    def _place(self, member: Member, parts: tuple[bytes, ...], reader: TarReader) -> None:
        if member.kind not in (FILE, DIRECTORY, SYMLINK, LINK):
            raise _Refused("it is a device, or something else that is no file")
        directory = self._walk(parts[:-1])
        try:
            if member.kind == DIRECTORY:
                self._make_directory(directory, parts, member)
                return
            if member.kind == SYMLINK and not leads_inside(member.target, len(parts) - 2):
                raise _Refused("it is a link that leads outside")
            source = self._find(member.target) if member.kind == LINK else -1
            try:
                if source >= 0 and _is(directory, parts[-1], source):
                    return  # it would lose its only name
                _make_room(directory, parts[-1])
                if member.kind == SYMLINK:
                    os.symlink(member.target, parts[-1], dir_fd=directory)
                    os.utime(
                        parts[-1],
                        ns=(member.mtime_ns, member.mtime_ns),
                        dir_fd=directory,
                        follow_symlinks=False,
                    )
                elif member.kind == LINK:
                    # By the descriptor: what it is was looked at, and its name need not be it any more.
                    os.link(f"/proc/self/fd/{source}", parts[-1], dst_dir_fd=directory, follow_symlinks=True)
                else:
                    self._make_file(directory, parts[-1], member, reader)
            finally:
                if source >= 0:
                    os.close(source)
        finally:
            os.close(directory)

    def _walk(self, parts: tuple[bytes, ...]) -> int:
        """Return a descriptor of a directory, found without following a link; missing ones are made."""
        here = os.dup(self._parent)
        for part in parts:
            try:
                try:
                    below = os.open(part, _DIRECTORY, dir_fd=here)
                except FileNotFoundError:
                    os.mkdir(part, 0o700, dir_fd=here)
                    below = os.open(part, _DIRECTORY, dir_fd=here)
            except NotADirectoryError:
                # A link is none either, wherever it leads.
                raise _Refused("what should be a directory above it is none") from None
            finally:
                os.close(here)
            here = below
        return here

    def _make_directory(self, directory: int, parts: tuple[bytes, ...], member: Member) -> None:
        try:
            os.mkdir(parts[-1], 0o700, dir_fd=directory)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(parts[-1], dir_fd=directory, follow_symlinks=False).st_mode):
                raise _Refused("something that is no directory is there already") from None
        self._directories[parts] = member

    def _find(self, target: bytes) -> int:
        """Return a descriptor of the file that a second name is for: one that was unpacked here."""
        parts = self._parts(target)
        directory = self._walk(parts[:-1])
        try:
            found = os.open(parts[-1], os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError:
            raise _Refused("it is a second name of what is not there") from None
        finally:
            os.close(directory)
        status = os.fstat(found)
        if (status.st_dev, status.st_ino) not in self._files:
            os.close(found)
            raise _Refused("it is a second name of what was not unpacked")
        return found

    def _make_file(self, directory: int, name: bytes, member: Member, reader: TarReader) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=directory)
        try:
            _write_pieces(fd, member, reader)
            for attribute, value in member.xattrs:
                if attribute.startswith(b"user."):
                    try:
                        os.setxattr(fd, attribute, value)
                    except OSError as error:
                        if error.errno not in (95, 28, 7, 122):  # EOPNOTSUPP, ENOSPC, E2BIG, EDQUOT
                            raise
                        self._tell(member.path, "an attribute of it cannot be kept here")
            os.fchmod(fd, member.mode & 0o777)
            os.utime(fd, ns=(member.mtime_ns, member.mtime_ns))
            status = os.fstat(fd)
            self._files.add((status.st_dev, status.st_ino))
        finally:
            os.close(fd)

    def finish(self) -> None:
        """Give directories their modes and times, the innermost first."""
        for parts in sorted(self._directories, key=len, reverse=True):
            member = self._directories[parts]
            try:
                fd = self._walk(parts)
            except (_Refused, OSError):
                self._tell(member.path, "something else has taken its place since")
                continue
            try:
                os.fchmod(fd, member.mode & 0o777)
                os.utime(fd, ns=(member.mtime_ns, member.mtime_ns))
            except OSError as error:
                self._tell(member.path, f"its mode cannot be set: {error.strerror}")
            finally:
                os.close(fd)
        if self._more:
            self.told.append(f"{self._more} more were left out")


def _is(directory: int, name: bytes, file: int) -> bool:
    try:
        there = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(file))


def _make_room(directory: int, name: bytes) -> None:
    """Take away what has the name, unless it is a directory."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        raise _Refused("a directory is there already") from None


def _write_pieces(fd: int, member: Member, reader: TarReader) -> None:
    pieces = iter(member.pieces)
    offset, left = 0, 0
    for chunk in reader.content():
        data = chunk
        while data:
            if not left:
                offset, left = next(pieces, (0, 0))
                if not left:
                    raise ProtocolError("the archive has more of a file than it said")
            part, data = data[:left], data[left:]
            offset += _write_at(fd, part, offset)
            left -= len(part)
    os.ftruncate(fd, member.size)


def _write_at(fd: int, data: bytes, offset: int) -> int:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)
    return done


def leads_inside(target: bytes, depth: int) -> bool:
    """Tell whether a link stays inside, that lies so many directories below the top.

    ``..`` is allowed at its beginning alone, where it counts from the link's own directory, which is no link: behind a
    name it would count from wherever another link leads.
    """
    if not target or target.startswith(b"/") or b"\0" in target:
        return False
    parts = [part for part in target.split(b"/") if part not in (b"", b".")]
    ups = 0
    while ups < len(parts) and parts[ups] == b"..":
        ups += 1
    return ups <= depth and b".." not in parts[ups:]
