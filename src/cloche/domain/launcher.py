"""Carrying out a plan (layer 5): sockets, the warden, the jailed processes, and their end.

The order is written once, here: run directory, sockets, warden, processes in the plan's order. All of it is sent off
without waiting for answers in between; what fails is reported when the answer comes. The end is one step: the warden
is told to go, and the kernel takes everything in its namespace with it.
"""

from __future__ import annotations

import errno
import os

from cloche import log
from cloche.domain.complaints import Complaints
from cloche.domain.endpoints import Endpoints
from cloche.errors import DiskError, DomainError, LaunchError
from cloche.host.reactor import READ
from cloche.host.rundir import RunDirectory
from cloche.host.text import escape_untrusted
from cloche.host.tools import require_own_binary
from cloche.host.warden import WARDEN_ID, Exited, Failed, Ready, Spawned, Warden
from cloche.model.jail import OWN, Bind, File, SpawnSpec
from cloche.model.plan import RUN_DIRECTORY
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from cloche.domain.restarts import Restarts
    from cloche.domain.timings import Timings
    from cloche.host.reactor import Reactor
    from cloche.host.warden import Event
    from cloche.model.jail import Jail, RootOp
    from cloche.model.plan import LaunchPlan, OpenFile, ProcessPlan

_STDERR = 2
_SIGKILL = 9
_SIGSYS = 31
#: Exit status of a device process that cannot use what it was given (crates/device).
_UNUSABLE = 4
#: What the kernel says when a program has called reboot(2), each a line of its own (kernel/reboot.c).
_REBOOT_LINES = {
    b"reboot: Restarting system": "restarted",
    b"reboot: Power down": "switched off",
    b"reboot: Power off not available: System halted instead": "switched off",
    b"reboot: System halted": "halted",
}
#: As much of the console as is kept to explain a failed boot, in bytes.
_CONSOLE_KEPT = 16 * 1024


class Launcher:
    """The processes of one domain.

    Attributes:
        ended: Called once, with an error that says why the domain ended by itself.
    """

    def __init__(
        self, reactor: Reactor, plan: LaunchPlan, timings: Timings, warden: Warden | None = None
    ) -> None:
        """Take over ``warden``, one that nothing was asked of yet; without one, ``start`` starts it."""
        self.plan = plan
        self.ended: Callable[[LaunchError | DomainError | DiskError], None] = _raise
        self.console_sink: Callable[[bytes], None] | None = None
        self._reactor = reactor
        self._timings = timings
        self._console = bytearray()
        self._console_socket: socket.socket | None = None
        self._warden = warden
        self._endpoints: Endpoints | None = None
        self._directory: RunDirectory | None = None
        self._complaints: dict[int, Complaints] = {}
        self._files: dict[OpenFile, int] = {}
        self._restarts: Restarts | None = None
        self._pidfds: dict[int, int] = {}
        self._check_filters: Callable[[LaunchPlan, dict[int, int]], None] | None = None
        self._verified = False
        self._closed = False

    @property
    def ident(self) -> str:
        """The domain's own name: that of its run directory."""
        return self._directory.ident if self._directory else ""

    def start(self) -> None:
        """Make the sockets and send off every process of the plan.

        Raises:
            HostError: The run directory, the warden or a binary is missing.
            DiskError: A disk's file cannot be opened.
        """
        if any(process.files for process in self.plan.processes):
            from cloche.domain.files import open_files

            self._files = open_files(self.plan.processes)
        self._directory = RunDirectory.create()
        # The warden needs nothing of the others: it comes up while they are made.
        self._warden = self._warden or Warden.start(require_own_binary("cloche-warden"))
        self._directory.record_warden(self._warden.pid, self.plan.insecure)
        self._reactor.register(self._warden.fileno(), READ, self._hear)
        self._endpoints = Endpoints(self.plan.endpoints, self._directory)
        self._timings.mark("sockets and warden")
        if self.plan.console:
            self._console_socket = self._endpoints.connect(self.plan.console)
            self._console_socket.setblocking(False)
            self._reactor.register(self._console_socket.fileno(), READ, self._read_console)
        machine_id = os.urandom(16).hex().encode()
        for ident, process in enumerate(self.plan.processes):
            self._spawn(ident, process, machine_id)
        lasting = [process for process in self.plan.processes if process.restarts]
        self._endpoints.release(
            keep=frozenset(d.endpoint for process in lasting for d in process.descriptors)
        )
        self._timings.mark("processes sent off")
        # While the machine boots, so that it takes no time when the agent answers.
        from cloche.domain.filters import check_filters

        self._check_filters = check_filters

    def connect(self) -> socket.socket:
        """Connect to the agent's byte stream."""
        if self._endpoints is None:
            raise DomainError("the domain was not started")
        return self._endpoints.connect(self.plan.control)

    def _spawn(self, ident: int, process: ProcessPlan, machine_id: bytes = b"") -> None:
        assert self._warden is not None
        assert self._endpoints is not None
        assert self._directory is not None
        program = _open_program(process.executable) if process.executable else None
        complaints = self._complaints[ident] = Complaints(self._reactor)
        fds = [self._endpoints.descriptor(d) for d in process.descriptors]
        fds += [*(self._files[file] for file in process.files), complaints.theirs]
        numbers = [d.number for d in process.descriptors] + [file.number for file in process.files]
        spec = SpawnSpec(
            id=ident,
            name=process.name.encode(),
            argv=process.argv,
            env=process.env,
            jail=self._own_ids(ident, process.jail)._replace(
                root=_fresh(process.jail.root, machine_id, self._directory.path)
            ),
            fds=(*numbers, _STDERR),
            exe_fd=program is not None,
        )
        log.debug(f"starting {process.name}")
        try:
            self._warden.send_spawn(spec, fds if program is None else [*fds, program])
        except LaunchError as error:
            raise self._why_gone(error) from None
        except ValueError as error:
            raise LaunchError(f"cannot start {process.name}: {error}", hint="Share fewer things.") from None
        finally:
            complaints.sent()
            if program is not None:
                os.close(program)

    def _own_ids(self, ident: int, jail: Jail) -> Jail:
        """Fill in the ids that a process has for itself. As long as the warden lives, its number is nobody else's."""
        ids = self.plan.ids
        if ids is None or OWN not in (jail.uid, jail.gid):
            return jail
        assert self._warden is not None
        number = ids.number(self._warden.pid, ident)
        return jail._replace(
            uid=number if jail.uid == OWN else jail.uid, gid=number if jail.gid == OWN else jail.gid
        )

    def verify(self) -> None:
        """Look whether every process has the filters of system calls that its policy asks for, once.

        For the moment when the agent has answered and nothing of the user's has run. Processes that are started anew
        later are the same programs.

        Raises:
            LaunchError: One has not; the domain should be ended.
        """
        if self._verified or self._closed:
            return
        # Those whose start is reported but was not heard of yet.
        self._hear(READ)
        self._verified = True
        try:
            if self._check_filters is not None and "seccomp" not in self.plan.insecure:
                self._check_filters(self.plan, self._pidfds)
        finally:
            self._forget_pidfds()
        self._timings.mark("filters counted")

    def _forget_pidfds(self) -> None:
        while self._pidfds:
            os.close(self._pidfds.popitem()[1])

    def _why_gone(self, error: LaunchError) -> LaunchError:
        """Return what the warden said before it went, if it said anything."""
        assert self._warden is not None
        try:
            heard = self._warden.receive()
        except LaunchError:
            return error
        for event in heard:
            if isinstance(event, Spawned):
                os.close(event.pidfd)
        return next((self._not_started(event) for event in heard if isinstance(event, Failed)), error)

    # What is heard from the domain

    def _hear(self, events: int) -> None:
        del events
        assert self._warden is not None
        try:
            heard = self._warden.receive()
        except LaunchError as error:
            self._end(error)
            return
        for event in heard:
            if not self._closed:
                self._handle(event)
            elif isinstance(event, Spawned):
                # Reported together with what ended the domain: nobody else closes its descriptor.
                os.close(event.pidfd)

    def _handle(self, event: Event) -> None:
        if isinstance(event, Ready):
            self._timings.mark("warden ready")
        elif isinstance(event, Spawned):
            before = event.pidfd if self._verified else self._pidfds.pop(event.id, None)
            if before is not None:
                os.close(before)
            if not self._verified:
                self._pidfds[event.id] = event.pidfd
            self._timings.mark(f"{self._name(event.id)} started")
        elif isinstance(event, Failed):
            self._end(self._not_started(event))
        else:
            self._process_ended(event)

    def _process_ended(self, event: Exited) -> None:
        process = self.plan.processes[event.id]
        how = f"was killed by signal {event.signal}" if event.signal else f"exited with status {event.status}"
        log.debug(f"{process.name} {how}")
        if process.name.startswith("fs-") and event.status == 0:
            return  # it ends by itself when the VMM has hung up: the VMM's own end says why
        if process.restarts and event.status == _UNUSABLE:
            self._end(self._unusable(event.id))
        elif process.restarts:
            self._start_again(event.id, how)
        elif process.essential:
            self._end(self._why_ended(event, process, how))

    def _why_ended(self, event: Exited, process: ProcessPlan, how: str) -> DomainError:
        self._drain_console()
        detail = self._complaints[event.id].last_words() or tuple(self.console_tail())
        if process.name == "vmm" and event.status == 0:
            if (done := self._rebooted()) is not None:
                return _by_program(done)
            return DomainError(
                "the guest's kernel has stopped the machine",
                detail=detail,
                hint="--boot-log shows all it says; --kernel takes another kernel, `cloche kernel list` names them.",
            )
        hint = "`cloche doctor` tries every part on this host."
        if event.signal == _SIGKILL:
            hint = "Somebody or the kernel (for want of memory?) has ended it; `dmesg` tells the latter."
        elif event.signal == _SIGSYS:
            hint = (
                "It made a system call that its policy does not allow: an attack, or a defect to be reported."
            )
        return DomainError(f"the domain ended: its process {process.name} {how}", detail=detail, hint=hint)

    def _unusable(self, ident: int) -> DiskError:
        """Return why a disk cannot be: its process looked at the file and would find the same again."""
        path = self.plan.processes[ident].files[0].path
        return DiskError(
            f"cannot use {path} as a disk",
            detail=self._complaints[ident].last_words(),
            hint="Say its format: format=raw or format=qcow2, the latter without a backing file.",
        )

    def _start_again(self, ident: int, how: str) -> None:
        """Start a process that has died anew; who talked to it connects to the same socket again."""
        from cloche.domain.restarts import MOST, WITHIN_S, Restarts

        process = self.plan.processes[ident]
        complaints = self._complaints.pop(ident)
        said = complaints.last_words()
        complaints.close()
        self._restarts = self._restarts or Restarts()
        if not self._restarts.may_restart(ident):
            self._end(
                DomainError(
                    f"the domain ended: its process {process.name} {how}, "
                    f"the last of {MOST + 1} times within {WITHIN_S:g} seconds",
                    detail=said,
                    hint="`cloche doctor` tries every part on this host.",
                )
            )
            return
        log.notice(f"{process.name} {how} and is started again" + (f": {said[-1]}" if said else ""))
        try:
            self._spawn(ident, process)
        except (LaunchError, DomainError) as error:
            self._end(error)

    def _not_started(self, event: Failed) -> LaunchError:
        what = "the domain" if event.id == WARDEN_ID else self._name(event.id)
        hint = "`cloche doctor` says what this host allows."
        if event.makes_namespaces:
            from cloche.host.userns import namespace_remedy

            hint = f"{namespace_remedy()} (`cloche doctor` tries it again)"
            if event.what == "make namespaces":
                hint += "; --insecure-no-jail=namespaces does without some of them"
        elif event.what == "seccomp":
            hint = (
                "This kernel cannot filter system calls so; --insecure-no-jail=seccomp starts it unfiltered."
            )
        elif event.errno == errno.ENOENT and event.what.startswith("bind "):
            hint = "It was there a moment ago: share a directory that stays."
        elif event.what.startswith("exec "):
            hint = "The program is damaged or not for this host: `make setup`, and `cloche doctor` tries it."
        return LaunchError(f"cannot start {what}: {event.reason()}", hint=hint)

    def _name(self, ident: int) -> str:
        return self.plan.processes[ident].name if ident < len(self.plan.processes) else f"process {ident}"

    def _end(self, error: LaunchError | DomainError | DiskError) -> None:
        if not self._closed:
            ended = self.ended
            self.close()
            ended(error)

    # The console

    def _read_console(self, events: int) -> None:
        del events
        assert self._console_socket is not None
        try:
            data = self._console_socket.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close_console()
            return
        self._console += data
        del self._console[:-_CONSOLE_KEPT]
        if self.console_sink is not None:
            self.console_sink(data)
        # A machine without ACPI cannot be switched off: it stands still, and nothing else says so.
        if b"\n" in data and (done := self._rebooted()) is not None and done != "restarted":
            self._end(_by_program(done))

    def _rebooted(self) -> str | None:
        """Return what a program of the guest has done to its machine, if that is the kernel's last word.

        Whoever can write such a line by other means is root of the guest, and could do the same.
        """
        last = bytes(self._console).replace(b"\r", b"").rstrip(b"\n").rpartition(b"\n")[2]
        return _REBOOT_LINES.get(last.rpartition(b"] ")[2])

    def console_tail(self, lines: int = 8) -> list[str]:
        """Return the last lines of the guest's console, made safe to show."""
        text = bytes(self._console).replace(b"\r", b"").split(b"\n")
        return [escape_untrusted(line, 200) for line in text if line.strip()][-lines:]

    def _drain_console(self) -> None:
        """Read what the guest has said until now: its last words may still be in the socket."""
        while self._console_socket is not None:
            before = len(self._console), bytes(self._console[-64:])
            self._read_console(READ)
            if (len(self._console), bytes(self._console[-64:])) == before:
                return

    def _close_console(self) -> None:
        if self._console_socket is not None:
            self._reactor.unregister(self._console_socket.fileno())
            self._console_socket.close()
            self._console_socket = None

    # The end

    def close(self, *, wait: bool = True) -> None:
        """End the domain and remove what it had. May be called twice, and after a failed ``start``.

        The lifeline is cut in any case; ``wait`` also waits until the kernel has ended everything.
        """
        if self._closed:
            return
        self._closed = True
        self._forget_pidfds()
        self._drain_console()
        self._close_console()
        for complaints in self._complaints.values():
            complaints.close()
        if self._warden is not None:
            self._reactor.unregister(self._warden.fileno())
            self._warden.close()
            if wait:
                self._warden.wait()
        while self._files:
            os.close(self._files.popitem()[1])
        if self._endpoints is not None:
            self._endpoints.close()
        if self._directory is not None:
            self._directory.close()


def _by_program(done: str) -> DomainError:
    return DomainError(
        f"a program in the guest has {done} its machine, and ended itself with it",
        hint="A machine lives as long as the program it was started for: let that one end.",
    )


def _open_program(path: str) -> int:
    try:
        return os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise LaunchError(
            f"cannot open {path}: {error.strerror}", hint="Run `make setup` in cloche's directory."
        ) from None


def _raise(error: LaunchError | DomainError | DiskError) -> None:
    raise error


def _fresh(root: tuple[RootOp, ...], machine_id: bytes, directory: str) -> tuple[RootOp, ...]:
    """Give this domain a machine-id and a run directory of its own, in place of what stands for them in the plan."""
    return tuple(_own(op, machine_id, os.fsencode(directory)) for op in root)


def _own(op: RootOp, machine_id: bytes, directory: bytes) -> RootOp:
    if isinstance(op, File) and op.path.endswith(b"/etc/machine-id"):
        return op._replace(content=machine_id + b"\n")
    if isinstance(op, Bind) and op.source.startswith(RUN_DIRECTORY + b"/"):
        return op._replace(source=directory + op.source[len(RUN_DIRECTORY) :])
    return op
