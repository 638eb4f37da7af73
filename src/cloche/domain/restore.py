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
from cloche.host.sparse import PIECE, extents
from cloche.host.text import escape_untrusted
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.lean import socket
    from cloche.model.plan import OpenFile, Template

#: What QEMU's monitor is asked. The memory is not part of the state: it lies in a file that is shared.
PREPARE = (
    b'{"execute":"qmp_capabilities"}'
    b'{"execute":"migrate-set-capabilities","arguments":{"capabilities":'
    b'[{"capability":"x-ignore-shared","state":true},{"capability":"events","state":true}]}}'
)
LOAD = b'{"execute":"migrate-incoming","arguments":{"uri":"file:/dev/fdset/1"}}'
SAVE = b'{"execute":"migrate","arguments":{"uri":"file:/dev/fdset/1"}}'


class Restore:
    """A saved machine that is being used by one start.

    Attributes:
        files: What the VMM receives; the caller's to close.
        loaded: Called once when the VMM has loaded the devices and the guest runs.
    """

    def __init__(self, template: Template, memory: int, state: int) -> None:
        """Take over the open files of its memory and state."""
        self.loaded: Callable[[], None] | None = None
        self._template = template
        self._memory = memory
        self.files: dict[OpenFile, int] = {template.state: state}

    @classmethod
    def open(cls, template: Template) -> Restore:
        """Open a template: from here on it may be removed.

        Raises:
            TemplateError: It is not there any more, or its state is damaged.
        """
        opened = []
        try:
            for path in (template.memory, template.state.path):
                opened.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
            memory, state = opened
            checksum = checksum_of(state)
        except OSError as error:
            _close(opened)
            raise TemplateError(f"cannot read {error.filename}: {error.strerror}") from None
        if checksum != template.checksum:
            _close(opened)
            raise TemplateError("its state is damaged")
        return cls(template, memory, state)

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
        # An event: {"event": "MIGRATION", "data": {"status": "completed"}}.
        if self.loaded is not None and b'"completed"' in data:
            loaded, self.loaded = self.loaded, None
            loaded()

    def close(self) -> None:
        """Let the template go. May be called twice."""
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1


def checksum_of(state: int) -> int:
    """Return the CRC-32 of a state.

    Raises:
        OSError: It cannot be read.
    """
    return zlib.crc32(os.pread(state, os.fstat(state).st_size, 0))


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


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
                with view[at : min(at + PIECE, end)] as piece:
                    count = os.preadv(source, [piece], at)
                if not count:
                    raise OSError(5, "it became shorter")
                at += count


def refusal(answer: bytes) -> str:
    """Return why the monitor has refused something, in its own words; empty if it has not."""
    if b'"error"' not in answer:
        return ""
    words = answer.partition(b'"desc": "')[2].partition(b'"}')[0]
    return escape_untrusted(words or answer, 200)
