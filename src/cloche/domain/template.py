"""Making a template (layer 5): a machine is booted in its jail until its agent waits, and saved.

Nothing of a run is in it: no devices but the control port and the system tree, no share, no program. It is made once
for each user, kernel, QEMU, host kernel and machine, by ``cloche template build``, or after the first run that had to
boot.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import zlib

from cloche import log
from cloche.domain.launcher import Launcher
from cloche.domain.prepare import choose_kernel, describe_template, find_template
from cloche.domain.restore import PREPARE, SAVE, open_in
from cloche.domain.timings import Timings
from cloche.drivers.registry import find_driver
from cloche.errors import ClocheError, LaunchError, TemplateError
from cloche.guest import messages
from cloche.host import templates, xdg
from cloche.host.durable import sync
from cloche.host.process import start_cloche
from cloche.host.reactor import Reactor
from cloche.host.sparse import checksum_memory, copy_memory, run_through
from cloche.kernel.initramfs import write_with_setup
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.lean import socket
    from cloche.model.facts import HostFacts
    from cloche.model.machine import Kernel
    from cloche.model.plan import LaunchPlan, OpenFile
    from cloche.model.request import RunRequest

#: After the agent has opened its port the kernel still ends what it has begun; every clone would do it again. Seconds.
_SETTLE_S = 0.3
#: Nobody tries in the background again so soon after it has failed, in seconds.
_RETRY_S = 3600.0
_FAILED = ".failed-"
_LOCK = ".lock"
_INITRAMFS = "initramfs"
_HINT = "Free some space there, or point XDG_CACHE_HOME to another place."


def make_template(request: RunRequest, facts: HostFacts, *, wait: bool = True) -> str:
    """Make the template for such requests unless there is one; return its name.

    Without ``wait`` this gives up when somebody else is making one.

    Raises:
        TemplateError: It cannot be made here, or could not be saved.
        ClocheError: The machine could not be started.
    """
    machine = plan_machine(request, facts)
    assert machine.machine is not None
    kernel = machine.machine.kernel
    try:
        description = describe_template(machine)
        home = xdg.ensure_directory(templates.home())
        lock = os.open(
            os.path.join(home, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
    except OSError as error:
        raise TemplateError(
            f"cannot make a template: {error.strerror}: {error.filename}", hint=_HINT
        ) from None
    name = templates.name_of(description)
    try:
        # The kernel lets go of it however this process ends; what it has left is removed by the next one.
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if find_template(machine) is None:
            templates.sweep()
            _make(request, facts, kernel, description, name)
    except BlockingIOError:
        raise TemplateError("somebody else is making a template") from None
    except OSError as error:
        raise TemplateError(f"cannot save the template: {error.strerror}", hint=_HINT) from None
    finally:
        os.close(lock)
    return name


def plan_machine(request: RunRequest, facts: HostFacts) -> LaunchPlan:
    """Return the machine that is saved for such requests.

    Raises:
        TemplateError: There is none.
    """
    driver = find_driver(request.driver)
    kernel = choose_kernel(request.kernel, facts.tools.agent)
    reason = driver.why_cold(request, facts, kernel)
    if reason:
        raise TemplateError(
            f"there can be no template for this: {reason}", hint="Machines start without one, only slower."
        )
    return driver.plan_template(request, facts, kernel)


def _make(request: RunRequest, facts: HostFacts, kernel: Kernel, description: str, name: str) -> None:
    building = os.path.join(templates.home(), f"{templates.HIDDEN}new-{os.getpid()}")
    os.mkdir(building, 0o700)
    try:
        # What is done before the machine is saved travels in its initramfs: an agent that has once been spoken to would
        # take the host of a clone for its own that has come back.
        initramfs = os.path.join(building, _INITRAMFS)
        driver = find_driver(request.driver)
        machine = driver.plan_template(request, facts, kernel._replace(initrd=initramfs))
        setup = messages.encode(messages.Setup(0, machine.setup))[messages.LENGTH_SIZE :]
        write_with_setup(initramfs, kernel.initrd, setup)
        content = _boot_and_save(machine, building)
        os.unlink(initramfs)
        _write(os.path.join(building, templates.INFO), templates.format_info(description, content))
        sync(building)
        templates.publish(building, name)
        sync(templates.home())
    finally:
        if os.path.isdir(building):
            templates.sweep()


def _boot_and_save(machine: LaunchPlan, building: str) -> templates.Content:
    errors: list[ClocheError] = []
    with Reactor() as reactor:
        saving = _Saving(reactor, machine, building)
        launcher = Launcher(reactor, machine, Timings(), template=saving)
        launcher.ended = errors.append
        reactor.call_later(
            machine.boot_timeout_s,
            lambda: errors.append(TemplateError("the machine to be saved does not come up")),
        )
        try:
            launcher.start()
            reactor.run_until(lambda: bool(errors) or saving.content is not None)
        finally:
            launcher.close()
    if errors:
        raise errors[0]
    assert saving.content is not None
    return saving.content


class _Saving:
    """Waits for the agent, has the machine saved, and takes its memory.

    Attributes:
        files: What the VMM receives: where it saves its devices.
        content: What was saved, once all of it is there.
    """

    def __init__(self, reactor: Reactor, machine: LaunchPlan, building: str) -> None:
        self.content: templates.Content | None = None
        self._reactor = reactor
        self._target = machine.memory
        self._memory_path = os.path.join(building, templates.MEMORY)
        self._state_path = os.path.join(building, templates.STATE)
        state = os.open(self._state_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        vmm, *others = machine.processes
        self.files: dict[OpenFile, int] = {vmm.files[0]: state}
        for file in {file for process in others for file in process.files}:
            # What drives hold in which nothing is.
            self.files[file] = os.memfd_create("empty", os.MFD_CLOEXEC)
        self._monitor: socket.socket | None = None
        self._pidfd = -1
        self._heard = b""
        self._begun = False

    def begin(self, monitor: socket.socket) -> None:
        """See ``TemplateWork``."""
        monitor.sendall(PREPARE)

    def started(self, pidfd: int, monitor: socket.socket) -> None:
        """See ``TemplateWork``."""
        self._pidfd = os.dup(pidfd)
        self._monitor = monitor

    def heard(self, data: bytes) -> None:
        """See ``TemplateWork``."""
        *lines, self._heard = (self._heard + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "error" in message:
                raise TemplateError(f"QEMU does not save the machine: {message['error'].get('desc', '')}")
            self._note(message.get("event"), message.get("data", {}))

    def _note(self, event: str | None, data: dict[str, object]) -> None:
        if event == "VSERPORT_CHANGE" and data.get("open") and not self._begun:
            self._begun = True
            self._reactor.call_later(_SETTLE_S, self._save)
        elif event == "MIGRATION" and data.get("status") == "failed":
            raise TemplateError("QEMU could not save the machine", hint=_HINT)
        elif event == "MIGRATION" and data.get("status") == "completed":
            try:
                self.content = self._take()
            except OSError as error:
                raise TemplateError(f"cannot save the template: {error.strerror}", hint=_HINT) from None

    def _save(self) -> None:
        if self._monitor is not None and self._monitor.fileno() >= 0:
            self._monitor.sendall(SAVE)

    def _take(self) -> templates.Content:
        source = open_in(self._pidfd, self._target, os.O_RDONLY)
        target = os.open(self._memory_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(source).st_size
            used, memory_checksum = run_through(copy_memory(source, target, thrifty=True))
            os.fsync(target)
        finally:
            os.close(source)
            os.close(target)
        fd = os.open(self._state_path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
            state = os.pread(fd, os.fstat(fd).st_size, 0)
        finally:
            os.close(fd)
        return templates.Content(size, used, len(state), zlib.crc32(state), memory_checksum)

    def close(self) -> None:
        """See ``TemplateWork``."""
        self._monitor = None
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def is_intact(directory: str) -> bool:
    """Read a whole template and compare it with its checksums."""
    _, content = templates.read_info(directory)
    if content is None:
        return False
    try:
        fd = os.open(os.path.join(directory, templates.STATE), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with open(fd, "rb") as file:
            if zlib.crc32(file.read()) != content.checksum:
                return False
        fd = os.open(os.path.join(directory, templates.MEMORY), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            used, checksum = checksum_memory(fd)
        finally:
            os.close(fd)
    except OSError:
        return False
    return (used, checksum) == (content.used_bytes, content.memory_checksum)


def _write(path: str, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def make_in_background(request: RunRequest) -> None:
    """Have the template of ordinary runs made by a process of its own, unless that has failed a short time ago.

    Args:
        request: A run that is to go on from it.
    """
    if _has_failed_lately():
        return
    words = ["--for-profiles"] if request.layer is not None else []
    if not words and request.disks:
        from cloche.drivers.qemu.disk import count_drives

        words = ["--drives", str(count_drives(request))]
    try:
        start_cloche("template", "build", "--background", *words)
    except LaunchError as error:
        log.debug(error.message)


def note_failure() -> None:
    """Write down that it has failed in the background."""
    try:
        path = os.path.join(xdg.ensure_directory(templates.home()), f"{_FAILED}build")
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        os.utime(path)
    except (OSError, ClocheError) as error:
        log.debug(f"cannot note that no template could be made: {error}")


def _has_failed_lately() -> bool:
    try:
        age = time.time() - os.stat(os.path.join(templates.home(), f"{_FAILED}build")).st_mtime
    except OSError:
        return False
    return 0 <= age < _RETRY_S
