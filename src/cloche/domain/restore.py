"""Going on from a template (layer 5): the guest's memory is filled while the VMM starts, then it loads the devices.

Only what is no hole in the template is copied: free memory costs nothing. QEMU looks into the guest's memory while it
loads, so it is told to load when all is there. A machine may be started before what it goes on from is there: then its
pages are made ready, and filled later.
"""

from __future__ import annotations

import os
import zlib

from cloche.domain.guest_memory import GuestMemory
from cloche.errors import TemplateError
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

    ::

        opened --> the VMM is started, and the machine is there (in either order) --> filled, loading --> loaded

    Attributes:
        files: What the VMM receives; the caller's to close.
        loaded: Called once when the VMM has loaded the devices and the guest runs.
    """

    def __init__(self, template: Template, memory: int, state: int) -> None:
        """Take over the open files of its memory and state."""
        self.loaded: Callable[[], None] | None = None
        self._template = template
        self._source = memory
        self._is_whole = template.is_whole
        self._started: tuple[GuestMemory, socket.socket] | None = None
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
            if template.is_whole:
                _check(state, template.checksum)
        except OSError as error:
            _close(opened)
            raise TemplateError(f"cannot read {error.filename}: {error.strerror}") from None
        except TemplateError:
            _close(opened)
            raise
        return cls(template, memory, state)

    def begin(self, monitor: socket.socket) -> None:
        """Leave for the monitor what it is to do as soon as there is one."""
        monitor.sendall(PREPARE)

    def started(self, pidfd: int, monitor: socket.socket) -> None:
        """Fill the memory of the VMM behind ``pidfd``, and have it load the rest, as soon as all is there.

        Raises:
            TemplateError: There is no room for it.
        """
        try:
            directory = open_in(pidfd, os.path.dirname(self._template.target), os.O_PATH | os.O_DIRECTORY)
            try:
                size = os.fstat(self._source).st_size
                memory = GuestMemory(directory, os.path.basename(self._template.target), size)
            finally:
                os.close(directory)
        except (FileNotFoundError, ProcessLookupError):
            self.close()
            return  # the VMM is gone, and its end, or that of another process, says why
        except OSError as error:
            self.close()
            raise _not_filled(error) from None
        self._started = memory, monitor
        if self._is_whole:
            self._load(memory, monitor)
        else:
            memory.make_ready(self._template.extents)

    def go_on(self, checksum: int) -> None:
        """Note that the machine is there; its state has this checksum.

        Raises:
            TemplateError: There is no room for its memory, or its state is damaged.
        """
        try:
            _check(self.files[self._template.state], checksum)
        except OSError as error:
            raise TemplateError(f"cannot read {self._template.state.path}: {error.strerror}") from None
        self._is_whole = True
        if self._started is not None:
            self._load(*self._started)

    def _load(self, memory: GuestMemory, monitor: socket.socket) -> None:
        try:
            memory.fill(self._source)
            monitor.sendall(LOAD)
        except (BrokenPipeError, ConnectionResetError):
            return  # the VMM is gone, and its end says why
        except OSError as error:
            raise _not_filled(error) from None
        finally:
            self.close()

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
        if self._source >= 0:
            os.close(self._source)
            self._source = -1
        if self._started is not None:
            self._started[0].close()
            self._started = None


def checksum_of(state: int) -> int:
    """Return the CRC-32 of a state.

    Raises:
        OSError: It cannot be read.
    """
    return zlib.crc32(os.pread(state, os.fstat(state).st_size, 0))


def _check(state: int, checksum: int) -> None:
    if checksum_of(state) != checksum:
        raise TemplateError("its state is damaged")


def _not_filled(error: OSError) -> TemplateError:
    return TemplateError(f"the machine's memory cannot be filled: {error.strerror}")


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


def refusal(answer: bytes) -> str:
    """Return why the monitor has refused something, in its own words; empty if it has not."""
    if b'"error"' not in answer:
        return ""
    words = answer.partition(b'"desc": "')[2].partition(b'"}')[0]
    return escape_untrusted(words or answer, 200)
