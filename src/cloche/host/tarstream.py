"""Reading a tar archive that somebody hostile may have made (layer 3a): bounded, strict, and without touching any file.

Understood is what GNU tar writes with ``--format=posix --sparse --xattrs``: ustar headers, extended headers (pax)
with path, linkpath, size, mtime, ``SCHILY.xattr.*`` and GNU's sparse format 1.0. Python's tarfile is not used: it
reads an extended header of any length into memory. Sources: POSIX.1-2017 (pax), GNU tar's manual, "Storing Sparse
Files".
"""

from __future__ import annotations

from cloche.errors import ProtocolError
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_BLOCK = 512
_CHUNK = 256 * 1024
#: Extended headers of one member, in bytes; a path has 4 KiB at most, an extended attribute 64 KiB.
_MOST_HEADERS = 1 << 20
#: Pieces of one sparse file.
_MOST_PIECES = 1 << 18
_LARGEST = 1 << 62
FILE, DIRECTORY, SYMLINK, LINK, OTHER = "file", "directory", "symbolic link", "link", "device"
_KINDS = {b"0": FILE, b"\0": FILE, b"7": FILE, b"5": DIRECTORY, b"2": SYMLINK, b"1": LINK}


class Member(Record):
    """One entry of an archive.

    Attributes:
        path: As it stands there.
        kind: FILE, DIRECTORY, SYMLINK, LINK (a second name) or OTHER.
        mode: The permission bits, as they stand there.
        mtime_ns: The time of its last change, in nanoseconds since the epoch.
        size: Of the file, holes included.
        target: Where a link leads.
        xattrs: Names and values of extended attributes.
        pieces: Where the stored bytes belong: offset and length each.
    """

    path: bytes
    kind: str
    mode: int
    mtime_ns: int
    size: int
    target: bytes
    xattrs: tuple[tuple[bytes, bytes], ...]
    pieces: tuple[tuple[int, int], ...]


class TarReader:
    """Takes an archive apart as it comes. ``read(n)`` gives at most n bytes, nothing at the end."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._left = 0  # bytes of the present member's content
        self._padding = 0
        self._has_begun = False

    def __iter__(self) -> Iterator[Member]:
        """Give every member; its content is read with ``content`` or passed over.

        Raises:
            ProtocolError: It is no archive, or ends too early.
        """
        while True:
            self._skip()
            member = self._next()
            if member is None:
                self._drain()
                return
            yield member

    def content(self) -> Iterator[bytes]:
        """Give the stored bytes of the present member, one piece behind the other."""
        while self._left:
            data = self._read(min(self._left, _CHUNK))
            if not data:
                raise ProtocolError("the archive ends in the middle of a file")
            self._left -= len(data)
            yield data

    def _skip(self) -> None:
        for _ in self.content():
            pass
        self._exactly(self._padding)
        self._padding = 0

    def _drain(self) -> None:
        while self._read(_CHUNK):
            pass

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self._read(count - len(data))
            if not more:
                raise ProtocolError("the archive ends too early")
            data += more
        return data

    def _next(self) -> Member | None:
        extended: dict[bytes, bytes] = {}
        while True:
            head = self._header()
            if head is None:
                return None
            kind = head[156:157]
            size = _number(head[124:136])
            if kind in (b"x", b"g"):
                if size > _MOST_HEADERS:
                    raise ProtocolError("the archive has too long a header")
                body = self._exactly(size)
                self._exactly(-size % _BLOCK)
                # One for all members (g) says nothing that matters here.
                if kind == b"x":
                    extended = _records(body)
                continue
            return self._member(head, kind, size, extended)

    def _header(self) -> bytes | None:
        head = b""
        while len(head) < _BLOCK:
            more = self._read(_BLOCK - len(head))
            if not more:
                if head or not self._has_begun:
                    raise ProtocolError("the archive ends too early")
                return None
            head += more
        if head == bytes(_BLOCK):
            return None
        expected = sum(head[:148]) + 8 * 32 + sum(head[156:])
        if head[257:262] != b"ustar" or _number(head[148:156]) != expected:
            raise ProtocolError("this is no archive of tar's, or a damaged one")
        self._has_begun = True
        return head

    def _member(self, head: bytes, kind: bytes, size: int, extended: dict[bytes, bytes]) -> Member:
        if b"size" in extended:
            size = _decimal(extended[b"size"])
        name, prefix = _text(head[0:100]), _text(head[345:500]) if head[257:263] == b"ustar\0" else b""
        path = extended.get(b"path", prefix + b"/" + name if prefix else name)
        what = _KINDS.get(kind, OTHER)
        self._left = size if what in (FILE, OTHER) else 0
        self._padding = -self._left % _BLOCK
        pieces: tuple[tuple[int, int], ...] = ((0, size),) if what == FILE and size else ()
        if what == FILE and extended.get(b"GNU.sparse.major") == b"1":
            path = extended.get(b"GNU.sparse.name", path)
            size = _decimal(extended.get(b"GNU.sparse.realsize", b"0"))
            pieces = self._sparse_map(size)
        elif any(key.startswith(b"GNU.sparse.") for key in extended):
            raise ProtocolError("the archive has a sparse file in a format that is not understood")
        return Member(
            path=path,
            kind=what,
            mode=_number(head[100:108]) & 0o7777,
            mtime_ns=_time_ns(extended[b"mtime"]) if b"mtime" in extended else _number(head[136:148]) * 10**9,
            size=size,
            target=extended.get(b"linkpath", _text(head[157:257])),
            xattrs=tuple(
                (key[len(b"SCHILY.xattr.") :], value)
                for key, value in extended.items()
                if key.startswith(b"SCHILY.xattr.")
            ),
            pieces=pieces,
        )

    def _sparse_map(self, size: int) -> tuple[tuple[int, int], ...]:
        """Read the map before a sparse file's bytes: how many pieces, offset and length of each; a line a number."""
        rest = b""

        def line() -> int:
            nonlocal rest
            while b"\n" not in rest:
                if len(rest) > 32 or self._left < _BLOCK:
                    raise ProtocolError("the archive has a damaged sparse file")
                rest += self._exactly(_BLOCK)
                self._left -= _BLOCK
            word, _, rest = rest.partition(b"\n")
            return _decimal(word)

        count = line()
        if count > _MOST_PIECES:
            raise ProtocolError("the archive has a file with too many pieces")
        pieces = tuple((line(), line()) for _ in range(count))
        end = 0
        for offset, length in pieces:
            if offset < end or offset + length > size:
                raise ProtocolError("the archive has a damaged sparse file")
            end = offset + length
        if sum(length for _, length in pieces) != self._left:
            raise ProtocolError("the archive has a damaged sparse file")
        return tuple(piece for piece in pieces if piece[1])


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _number(field: bytes) -> int:
    """Return what a header's field says: octal digits, or GNU's base 256."""
    if field[:1] == b"\x80":
        value = int.from_bytes(field[1:], "big")
    else:
        digits = field.strip(b" \0")
        if not digits:
            return 0
        if digits.strip(b"01234567"):
            raise ProtocolError("the archive has a number that is none")
        value = int(digits, 8)
    if value > _LARGEST:
        raise ProtocolError("the archive has too large a number")
    return value


def _decimal(word: bytes) -> int:
    if not word.isdigit() or len(word) > 19 or int(word) > _LARGEST:
        raise ProtocolError("the archive has a number that is none")
    return int(word)


def _time_ns(word: bytes) -> int:
    """Return the nanoseconds of ``[-]SECONDS[.FRACTION]``."""
    negative = word.startswith(b"-")
    seconds, _, fraction = word.removeprefix(b"-").partition(b".")
    if fraction.strip(b"0123456789"):
        raise ProtocolError("the archive has a time that is none")
    whole = min(_decimal(seconds), 1 << 33) * 10**9 + int(fraction[:9].ljust(9, b"0") or b"0")
    return -whole if negative else whole


def _records(body: bytes) -> dict[bytes, bytes]:
    r"""Return the fields of an extended header: ``LENGTH NAME=VALUE\n``, the length of all of it."""
    fields = {}
    at = 0
    while at < len(body):
        digits, space, _ = body[at : at + 12].partition(b" ")
        length = _decimal(digits)
        record = body[at : at + length]
        if not space or length <= len(digits) + 1 or len(record) != length or record[-1:] != b"\n":
            raise ProtocolError("the archive has a damaged header")
        name, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not equals:
            raise ProtocolError("the archive has a damaged header")
        fields[name] = value
        at += length
    return fields
