"""Going on from a template (layer 5): the guest's memory is filled while the VMM starts, then it loads the devices.

The memory is a file in a tmpfs of the VMM's own root, made there by whoever comes first. It is filled from outside: the
kernel lets the caller in, who owns the domain's user namespace. Only what is no hole in the template is copied, so free
memory costs nothing. QEMU looks into the guest's memory while it loads, so it is told to load when all is there.
"""

from __future__ import annotations

import mmap
import os
import zlib

from cloche.errors import TemplateError
from cloche.host.text import escape_untrusted
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.lean import socket
    from cloche.model.plan import OpenFile, Template

#: A guest's memory is copied in pieces of this many bytes at most.
_PIECE = 4 << 20

#: What QEMU's monitor is asked. The memory is not part of the state: it lies in a file that is shared.
PREPARE = (
    b'{"execute":"qmp_capabilities"}'
    b'{"execute":"migrate-set-capabilities","arguments":{"capabilities":'
    b'[{"capability":"x-ignore-shared","state":true},{"capability":"events","state":true}]}}'
)
LOAD = b'{"execute":"migrate-incoming","arguments":{"uri":"file:/dev/fdset/1"}}'
SAVE = b'{"execute":"migrate","arguments":{"uri":"file:/dev/fdset/1"}}'


class Restore:
    """A template that is being used by one start.

    Attributes:
        files: What the VMM receives; the caller's to close.
    """

    def __init__(self, template: Template) -> None:
        """Open the template: from here on it may be removed.

        Raises:
            TemplateError: It is not there any more, or its state is damaged.
        """
        self._template = template
        self._memory = self._state = -1
        try:
            self._memory = os.open(template.memory, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            self._state = os.open(template.state.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            size = os.fstat(self._state).st_size
            checksum = zlib.crc32(os.pread(self._state, size, 0))
        except OSError as error:
            self.close()
            raise TemplateError(f"cannot read {error.filename}: {error.strerror}") from None
        if checksum != template.checksum:
            self.close()
            raise TemplateError("its state is damaged")
        self.files: dict[OpenFile, int] = {template.state: self._state}
        self._state = -1

    def begin(self, monitor: socket.socket) -> None:
        """Leave for the monitor what it is to do as soon as there is one."""
        monitor.sendall(PREPARE)

    def started(self, pidfd: int, monitor: socket.socket) -> None:
        """Fill the memory of the VMM behind ``pidfd``, and have it load the rest.

        Raises:
            TemplateError: There is no room for it.
        """
        try:
            directory = open_in(pidfd, os.path.dirname(self._template.target), os.O_PATH | os.O_DIRECTORY)
            try:
                self._fill(directory, os.path.basename(self._template.target))
            finally:
                os.close(directory)
            monitor.sendall(LOAD)
        except (BrokenPipeError, ConnectionResetError, FileNotFoundError, ProcessLookupError):
            return  # the VMM is gone, and its end, or that of another process, says why
        except OSError as error:
            raise TemplateError(f"the machine's memory cannot be filled: {error.strerror}") from None
        finally:
            self.close()

    def _fill(self, directory: int, name: bytes) -> None:
        """Fill the file of the memory. The VMM may just be making it; it must find it finished, or not at all."""
        size = os.fstat(self._memory).st_size
        mine = b"%s-%d" % (name, os.getpid())
        target = os.open(mine, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
        try:
            os.ftruncate(target, size)
            # Root's VMM has an id of its own.
            owner = os.stat(b".", dir_fd=directory)
            os.fchown(target, owner.st_uid, owner.st_gid)
            try:
                os.link(mine, name, src_dir_fd=directory, dst_dir_fd=directory)
            except FileExistsError:
                os.close(target)
                target = os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
            os.unlink(mine, dir_fd=directory)
            copy_sparse(self._memory, target)
        finally:
            os.close(target)

    def heard(self, data: bytes) -> None:
        """Look whether QEMU refuses the template; whatever else it says is not waited for.

        Raises:
            TemplateError: It does.
        """
        reason = refusal(data)
        if reason:
            raise TemplateError(f"QEMU refuses it: {reason}")

    def close(self) -> None:
        """Let the template go. May be called twice."""
        for fd in (self._memory, self._state):
            if fd >= 0:
                os.close(fd)
        self._memory = self._state = -1


def open_in(pidfd: int, path: bytes, flags: int) -> int:
    """Open a file in the root of a process, which is the caller's.

    Raises:
        OSError: It is not there, or the process is gone.
    """
    with open(f"/proc/self/fdinfo/{pidfd}", "rb") as file:
        pid = next(int(line[4:]) for line in file if line.startswith(b"Pid:"))
    if pid <= 0:
        raise ProcessLookupError(3, "No such process")
    return os.open(b"/proc/%d/root%s" % (pid, path), flags | os.O_CLOEXEC | os.O_NOFOLLOW)


def copy_sparse(source: int, target: int) -> None:
    """Copy a guest's memory into an empty file; what was a hole stays one, but for the rest of a huge page.

    It is read right into mapped huge pages, where the kernel has them: one copy, and few faults.

    Raises:
        OSError: There is no room for it.
    """
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    with mmap.mmap(target, size) as mapped, memoryview(mapped) as view:
        if hasattr(mmap, "MADV_HUGEPAGE"):
            try:
                mapped.madvise(mmap.MADV_HUGEPAGE)
            except OSError:
                pass  # this kernel has none: small ones do
        for begin, end in extents(source, size):
            at = begin
            while at < end:
                with view[at : min(at + _PIECE, end)] as piece:
                    count = os.preadv(source, [piece], at)
                if not count:
                    raise OSError(5, "it became shorter")
                at += count


def extents(fd: int, size: int) -> list[tuple[int, int]]:
    """Return begin and end of everything in a file that is no hole."""
    found = []
    at = 0
    while at < size:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == 6:  # ENXIO: nothing more
                break
            raise
        at = os.lseek(fd, begin, os.SEEK_HOLE)
        found.append((begin, at))
    return found


def refusal(answer: bytes) -> str:
    """Return why the monitor has refused something, in its own words; empty if it has not."""
    if b'"error"' not in answer:
        return ""
    words = answer.partition(b'"desc": "')[2].partition(b'"}')[0]
    return escape_untrusted(words or answer, 200)
