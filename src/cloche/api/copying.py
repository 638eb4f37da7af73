"""Copying between host and guest (layer 5b): tar on both sides, of which the guest's is not trusted.

In the guest tar is the host's own program, run as root of the guest; what comes from there is unpacked by
``host.unpack``.
"""

from __future__ import annotations

import os
import posixpath
import threading
from functools import partial

from cloche import log
from cloche.api.popen import DEVNULL, PIPE
from cloche.errors import ClocheError, ProtocolError, UsageError
from cloche.host.text import escape_untrusted
from cloche.host.unpack import unpack
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import IO, Self

    from cloche.api.machine import Machine
    from cloche.api.popen import File, Popen
    from cloche.api.programs import Word

_TAR = "/usr/bin/tar"
_CREATE = ("-c", "--format=posix", "--sparse", "--xattrs", "--numeric-owner", "--no-unquote", "-f", "-")
_EXTRACT = 'exec tar -x -p --xattrs --numeric-owner -f - -C "$1"'
_CHUNK = 256 * 1024
#: Of a tar's complaints, in bytes.
_MOST_SAID = 16 * 1024


def copy_out(domain: Machine, source: bytes, target: bytes) -> tuple[str, ...]:
    """Copy from the guest; see ``Domain.copy_out``.

    Raises:
        ClocheError: It is not there, or cannot be written here.
    """
    directory, name = _split(_absolute(source))
    parent, own = _destination(target, name)
    try:
        with _pack(domain, directory, name, PIPE) as packing:
            assert packing.process.stdout is not None
            try:
                told = unpack(packing.process.stdout.read, name, parent, own)
            except ProtocolError:
                # Why there is no archive is the better reason.
                packing.finish(escape_untrusted(source, 200))
                raise
            packing.finish(escape_untrusted(source, 200))
    finally:
        os.close(parent)
    return told


def copy_in(domain: Machine, source: bytes, target: bytes) -> None:
    """Copy into the guest; see ``Domain.copy_in``.

    Raises:
        ClocheError: It is not there, or cannot be written there.
    """
    from cloche.host.process import Stream

    source = source.rstrip(b"/") or b"/"
    place = _absolute(target)
    try:
        is_tree = not os.path.islink(source) and os.path.isdir(source)
        os.lstat(source)
    except OSError as error:
        raise ClocheError(f"cannot copy {os.fsdecode(source)}: {error.strerror}") from None
    if target.endswith(b"/") or _is_directory(domain, place):
        place = posixpath.join(place, os.path.basename(os.path.abspath(source)))
    directory, name = _split(place)
    if is_tree:
        argv = [_TAR, *_CREATE, "-C", os.fsdecode(source), "--", "."]
        script, where = f'mkdir -p -- "$1" && {_EXTRACT}', place
    else:
        here, base = os.path.split(os.path.abspath(source))
        # Names of links are left alone (S, H).
        rename = b"--transform=s|.*|%s|SH" % _replacement(name)
        argv = [_TAR, *_CREATE, os.fsdecode(rename), "-C", os.fsdecode(here), "--", os.fsdecode(b"./" + base)]
        script, where = _EXTRACT, directory
    with Stream(argv) as packing:
        _extract(domain, script, where, packing.stdout)
        packing.finish()


def stream_out(domain: Machine, source: bytes, stdout: File) -> None:
    """Write what is at ``source`` in the guest as a tar archive, as the guest makes it.

    Raises:
        ClocheError: It is not there.
    """
    directory, name = _split(_absolute(source))
    with _pack(domain, directory, name, stdout) as packing:
        packing.finish(escape_untrusted(source, 200))


def stream_in(domain: Machine, target: bytes, stdin: File) -> None:
    """Unpack a tar archive in a directory of the guest.

    Raises:
        ClocheError: There is no such directory, or it is no archive.
    """
    _extract(domain, _EXTRACT, _absolute(target), stdin)


class _Tar:
    """A tar in the guest, and what it complains of."""

    def __init__(self, process: Popen) -> None:
        self.process = process
        self._said = b""
        assert process.stderr is not None
        self._listening = threading.Thread(target=self._listen, args=(process.stderr,), daemon=True)
        self._listening.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _listen(self, stderr: IO[bytes]) -> None:
        for piece in iter(partial(stderr.read, 4096), b""):
            self._said += piece[: _MOST_SAID - len(self._said)]
        stderr.close()

    def finish(self, what: str) -> None:
        """Wait for its end; pass on what it says.

        Raises:
            ClocheError: It has failed.
        """
        status = self.process.wait()
        self._listening.join()
        lines = tuple(escape_untrusted(line, 400) for line in self._said.splitlines()[:20])
        if status > 1 or status < 0:
            raise ClocheError(f"cannot copy {what}: tar in the guest has failed", detail=lines)
        # 1: something has changed while it was read.
        for line in lines:
            log.notice(f"in the guest: {line}")


def _pack(domain: Machine, directory: bytes, name: bytes, stdout: File) -> _Tar:
    argv: list[Word] = ["tar", *_CREATE, "-C", directory, "--", name]
    return _Tar(domain.popen(argv, stdin=DEVNULL, stdout=stdout, stderr=PIPE, user="root", cwd="/"))


def _extract(domain: Machine, script: str, where: bytes, stdin: File) -> None:
    argv: list[Word] = ["sh", "-c", script, "sh", where]
    with _Tar(
        domain.popen(argv, stdin=stdin, stdout=DEVNULL, stderr=PIPE, user="root", cwd="/")
    ) as extracting:
        extracting.finish(f"to {escape_untrusted(where, 200)}")


def _is_directory(domain: Machine, path: bytes) -> bool:
    argv: list[Word] = ["sh", "-c", 'test -d "$1"', "sh", path]
    return (
        domain.run(argv, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, user="root", cwd="/").returncode == 0
    )


def _absolute(path: bytes) -> bytes:
    if not path.startswith(b"/") or b"\0" in path:
        raise UsageError(
            f"{escape_untrusted(path, 200)} is no absolute path of the guest", hint="Begin it with a slash."
        )
    return b"/" + posixpath.normpath(path).lstrip(b"/")


def _split(path: bytes) -> tuple[bytes, bytes]:
    directory, name = posixpath.split(path)
    if not name:
        raise UsageError("the guest's root cannot be copied as a whole", hint="Name something in it.")
    return directory, name


def _replacement(name: bytes) -> bytes:
    """Return what gives ``name`` as the replacement in one of tar's transformations."""
    for sign in (b"\\", b"&", b"|"):
        name = name.replace(sign, b"\\" + sign)
    return name.replace(b"\n", b"\\n")


def _destination(target: bytes, name: bytes) -> tuple[int, bytes]:
    """Return the directory something is to be unpacked in, and the name it gets there."""
    parent, own = target, name
    if not os.path.isdir(target):
        if target.endswith(b"/"):
            raise ClocheError(f"there is no directory {escape_untrusted(target, 200)}", hint="Make it first.")
        parent, own = os.path.split(target)
        parent = parent or b"."
    try:
        return os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), own
    except OSError as error:
        raise ClocheError(f"cannot copy to {escape_untrusted(target, 200)}: {error.strerror}") from None
