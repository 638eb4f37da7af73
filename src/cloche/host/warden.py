"""The supervisor's side of the warden (layer 3): starts it, asks it for processes, hears how they end.

``protocol/warden.md`` is the specification. The socket is the domain's lifeline: when the last copy of the
supervisor's end is closed, every process of the domain dies. So a program that forks without an exec while it has a
Warden must ``close`` it in the process that is not to be the supervisor (with ``release``, which ends nothing).
"""

from __future__ import annotations

import errno
import os
import sys

from cloche.errors import HostError, LaunchError, ProtocolError
from cloche.host.codec import Reader, Writer
from cloche.host.text import describe_errno
from cloche.lean import socket
from cloche.model.jail import Bind, BindFd, Dev, Dir, File, Proc, Symlink, Tmpfs
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from cloche.host.keeper import Keeper
    from cloche.model.jail import Jail, RootOp, SpawnSpec

#: Limits of the protocol.
MAX_PACKET = 192 * 1024
MAX_DESCRIPTORS = 64
#: The ``id`` of a Failed that is about the warden itself.
WARDEN_ID = 0xFFFF_FFFF

_GONE = "the warden is gone, and every process of the domain with it"
_GONE_HINT = "Somebody or the kernel (for want of memory?) has ended it; `cloche doctor` tries it again."
_UNNAMED = 0xFFFF_FFFF
_SOCKET_NUMBER = 3
#: An event has at most a step's name of 2 KiB.
_MAX_EVENT = 4096
_EVENTS_AT_ONCE = 64
#: Room for one descriptor (the kernel closes any other and says MSG_CTRUNC).
_FD_SPACE = socket.CMSG_LEN(4)


class Ready(Record):
    """The warden's PID 1 listens."""


class Spawned(Record):
    """A process runs. ``pid`` is its number in the domain; ``pidfd`` is the receiver's to close."""

    id: int
    pid: int
    pidfd: int


class Failed(Record):
    """A process was not started; ``what`` names the step, ``errno`` the kernel's reason."""

    id: int
    errno: int
    what: str

    def reason(self) -> str:
        """One clause for a message: the step, then the cause."""
        if self.makes_namespaces and self.errno == errno.ENOSPC:
            return f"{self.what}: this host allows no more of them"
        return f"{self.what}: {describe_errno(self.errno)}"

    @property
    def makes_namespaces(self) -> bool:
        """Whether it is the making of namespaces that failed."""
        return self.what.startswith("make ") and "namespace" in self.what


class Exited(Record):
    """A process has ended: ``status`` when it exited, ``signal`` when one killed it (then status is -1)."""

    id: int
    status: int
    signal: int = 0


class Done(Record):
    """A ``mount`` or ``unmount`` was carried out (``errno`` 0), or the step ``what`` of it failed."""

    request: int
    errno: int
    what: str


Event = Ready | Spawned | Failed | Exited | Done


class Warden:
    """A running warden. Not thread-safe. A context manager: leaving ends the domain and reaps the warden.

    Attributes:
        pid: The outer process, a child of this one until ``wait``.
        keeper: The keeper of this process's terminal, if one was asked for; it ends with ``close``.
    """

    def __init__(self, connection: socket.socket, pid: int, keeper: Keeper | None = None) -> None:
        self._socket = connection
        self.pid = pid
        self.keeper = keeper
        self._status: int | None = None

    @classmethod
    def start(cls, binary: str, *, keeper: bool = False) -> Warden:
        """Start ``binary`` and return at once; a Ready or a Failed with WARDEN_ID follows.

        With ``keeper`` its outer process also keeps this process's terminal.

        One posix_spawn: safe in a program with threads, and nothing of ours is inherited but the socket (Python's
        descriptors are close-on-exec, and the warden closes the rest).

        Raises:
            HostError: The program cannot be started.
        """
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(1 + keeper)]
        try:
            pid = _spawn_warden(binary, [theirs.fileno() for _, theirs in pairs])
        except BaseException as error:
            for ours, _ in pairs:
                ours.close()
            if isinstance(error, OSError):
                raise HostError(
                    f"cannot start {binary}: {error.strerror}", hint="Run `make setup` in cloche's directory."
                ) from error
            raise
        finally:
            for _, theirs in pairs:
                theirs.close()
        if not keeper:
            return cls(pairs[0][0], pid)
        from cloche.host.keeper import Keeper

        return cls(pairs[0][0], pid, Keeper(pairs[1][0]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
        self.wait()

    def fileno(self) -> int:
        """The socket, for a reactor; -1 when closed."""
        return self._socket.fileno()

    def send_spawn(self, spec: SpawnSpec, fds: Sequence[int]) -> None:
        """Ask for a process. A Spawned or Failed with its id follows; the caller keeps (and closes) ``fds``.

        Raises:
            ValueError: The descriptors do not fit ``spec``, or the message is too long.
            LaunchError: The warden is gone.
        """
        expected = len(spec.fds) + spec.cgroup + spec.exe_fd
        if len(fds) != expected or expected > MAX_DESCRIPTORS:
            raise ValueError(
                f"{len(fds)} descriptors given, {expected} named, at most {MAX_DESCRIPTORS} allowed"
            )
        self._send(encode_spawn(spec), fds)

    def kill(self, ident: int, signo: int) -> None:
        """Send a signal to a process of the domain. One that has ended already is no error.

        Raises:
            LaunchError: The warden is gone.
        """
        writer = Writer()
        writer.u8(2)
        writer.u32(ident)
        writer.u32(signo)
        self._send(writer.finish(), ())

    def send_mount(self, request: int, ident: int, path: bytes, flags: int, source: int) -> None:
        """Show the directory behind ``source`` at a new place of a running process; a Done follows.

        Args:
            request: The caller's number for this.
            ident: The process's id.
            path: A directory that does not exist yet, in one of the process's own root.
            flags: BindFlag bits.
            source: A descriptor; the caller keeps (and closes) it.

        Raises:
            LaunchError: The warden is gone.
        """
        writer = Writer()
        writer.u8(4)
        writer.u32(request)
        writer.u32(ident)
        writer.blob(path)
        writer.u32(flags)
        self._send(writer.finish(), (source,))

    def send_unmount(self, request: int, ident: int, path: bytes) -> None:
        """Take away what ``send_mount`` has put at ``path``; a Done follows. Nothing there is no error.

        Raises:
            LaunchError: The warden is gone.
        """
        writer = Writer()
        writer.u8(5)
        writer.u32(request)
        writer.u32(ident)
        writer.blob(path)
        self._send(writer.finish(), ())

    def shutdown(self) -> None:
        """Ask PID 1 to end at once and everything with it. A warden that is gone already is no error."""
        try:
            self._send(b"\x03", ())
        except LaunchError:
            return

    def receive(self, *, wait: bool = False) -> list[Event]:
        """Return what has been reported since the last call, without waiting unless ``wait``.

        Raises:
            LaunchError: The warden is gone (all its processes are, too).
            ProtocolError: It said something the specification does not allow.
        """
        events: list[Event] = []
        reset = False
        while len(events) < _EVENTS_AT_ONCE:
            # Not socket.recv_fds: it ignores its flags (CPython 3.11).
            flags = socket.MSG_CMSG_CLOEXEC | (0 if wait and not events else socket.MSG_DONTWAIT)
            try:
                data, ancillary, message_flags, _ = self._socket.recvmsg(_MAX_EVENT, _FD_SPACE, flags)
            except BlockingIOError:
                break
            except ConnectionResetError:
                # It left without reading all of what it was told. The kernel says so once, and before what the warden
                # has said itself: its reason may still come.
                if reset:
                    data, ancillary, message_flags = b"", [], 0
                else:
                    reset = True
                    continue
            fds = [
                int.from_bytes(rights[:4], sys.byteorder) for _, _, rights in ancillary if len(rights) >= 4
            ]
            if not data:
                if events:
                    break  # the next call says it
                raise LaunchError(_GONE, hint=_GONE_HINT)
            try:
                events.append(_decode(data, fds, message_flags))
            except BaseException:
                for fd in fds:
                    os.close(fd)
                raise
        return events

    def close(self) -> None:
        """End the domain: closes the lifeline. Harmless when closed."""
        if self._socket.fileno() >= 0:
            try:
                # Ends it even if a copy of this descriptor was inherited somewhere.
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError as error:
                if error.errno != errno.ENOTCONN:
                    raise
            self._socket.close()
        if self.keeper is not None:
            self.keeper.close()

    def release(self) -> None:
        """Forget this copy of the lifeline after a fork; the domain lives on with the other copy."""
        self._socket.close()
        if self.keeper is not None:
            self.keeper.close()

    def wait(self) -> int:
        """Wait for the outer process and return its exit status (128 + N for a signal N).

        When it has returned, every process of the domain is gone, unless the outer process itself was killed: then
        they are dying.
        """
        if self._status is None:
            try:
                status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            except ChildProcessError:
                status = 0  # whoever started us ignores SIGCHLD: the kernel waits, and there is no status
            self._status = status if status >= 0 else 128 - status
        return self._status

    def spawn_and_wait(self, spec: SpawnSpec, fds: Sequence[int] = ()) -> Exited:
        """Run one process to its end; for use away from a reactor, on a warden nothing else is asked of meanwhile.

        Raises:
            LaunchError: It was not started, or the warden is gone.
        """
        self.send_spawn(spec, fds)
        while True:
            for event in self.receive(wait=True):
                if isinstance(event, Spawned):
                    os.close(event.pidfd)
                elif isinstance(event, Failed):
                    name = spec.name.decode("utf-8", "replace")
                    raise LaunchError(f"cannot start {name}: {event.reason()}")
                elif isinstance(event, Exited) and event.id == spec.id:
                    return event

    def _send(self, packet: bytes, fds: Sequence[int]) -> None:
        if len(packet) > MAX_PACKET:
            raise ValueError(f"a message of {len(packet)} bytes is longer than the protocol's {MAX_PACKET}")
        try:
            rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
            self._socket.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else [])
        except (BrokenPipeError, ConnectionResetError) as error:
            raise LaunchError(_GONE, hint=_GONE_HINT) from error


def _spawn_warden(binary: str, fds: list[int]) -> int:
    """Start it with its socket and, if there is one, the keeper's."""
    # In the child, what is below is overwritten one after the other.
    highest = _SOCKET_NUMBER + len(fds) - 1
    moved = {fd: fd if fd > highest else _above(fd, highest) for fd in fds}
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
        (os.POSIX_SPAWN_DUP2, 0, 1),
        (os.POSIX_SPAWN_DUP2, 0, 2),
        *((os.POSIX_SPAWN_DUP2, moved[fd], number) for number, fd in enumerate(fds, _SOCKET_NUMBER)),
    ]
    argv = ["cloche-warden", "--terminal"][: len(fds)]
    try:
        return os.posix_spawn(binary, argv, {}, file_actions=actions)
    finally:
        for fd, copy in moved.items():
            if copy != fd:
                os.close(copy)


def _above(fd: int, number: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, number + 1)


def encode_spawn(spec: SpawnSpec) -> bytes:
    """Return the SPAWN message for ``spec``."""
    writer = Writer()
    writer.u8(1)
    writer.u32(spec.id)
    writer.blob(spec.name)
    writer.many(spec.argv, Writer.blob)
    writer.many(spec.env, Writer.blob)
    writer.many((_UNNAMED if number is None else number for number in spec.fds), Writer.u32)
    writer.u8(spec.exe_fd)
    writer.u8(spec.cgroup)
    _encode_jail(writer, spec.jail)
    return writer.finish()


def _encode_jail(writer: Writer, jail: Jail) -> None:
    writer.u32(jail.namespaces)
    writer.u32(jail.uid)
    writer.u32(jail.gid)
    writer.u64(jail.keep_caps)
    writer.u32(jail.flags)
    writer.blob(jail.hostname)
    writer.blob(jail.cwd)
    writer.many(jail.rlimits, _encode_rlimit)
    writer.blob(jail.seccomp)
    writer.many(jail.root, _encode_root_op)


def _encode_rlimit(writer: Writer, limit: tuple[int, int, int]) -> None:
    resource, soft, hard = limit
    writer.u32(resource)
    writer.u64(soft)
    writer.u64(hard)


def _encode_root_op(writer: Writer, op: RootOp) -> None:
    if isinstance(op, Dir):
        writer.u8(1)
        writer.blob(op.path)
        writer.u32(op.mode)
    elif isinstance(op, Bind):
        writer.u8(2)
        writer.blob(op.source)
        writer.blob(op.path)
        writer.u32(op.flags)
    elif isinstance(op, File):
        writer.u8(3)
        writer.blob(op.path)
        writer.u32(op.mode)
        writer.blob(op.content)
    elif isinstance(op, Symlink):
        writer.u8(4)
        writer.blob(op.target)
        writer.blob(op.path)
    elif isinstance(op, Tmpfs):
        writer.u8(5)
        writer.blob(op.path)
        writer.u64(op.size)
        writer.u32(op.mode)
        writer.u32(op.flags)
    elif isinstance(op, Proc):
        writer.u8(6)
        writer.blob(op.path)
    elif isinstance(op, Dev):
        writer.u8(7)
        writer.blob(op.path)
    else:
        _encode_bind_fd(writer, op)


def _encode_bind_fd(writer: Writer, op: BindFd) -> None:
    writer.u8(8)
    writer.u32(op.fd_index)
    writer.blob(op.path)
    writer.u32(op.flags)


def _decode(data: bytes, fds: list[int], message_flags: int) -> Event:
    if message_flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        raise ProtocolError("the warden sent a packet that is too long")
    reader = Reader(data)
    kind = reader.u8()
    event: Event
    if kind == 65:
        event = Ready()
    elif kind == 66:
        if len(fds) != 1:
            raise ProtocolError("the warden reported a process without its descriptor")
        event = Spawned(reader.u32(), reader.u32(), fds[0])
    elif kind == 67:
        event = Failed(reader.u32(), reader.u32(), reader.blob().decode("utf-8", "backslashreplace"))
    elif kind == 68:
        ident, how, value = reader.u32(), reader.u8(), reader.u32()
        if how > 1:
            raise ProtocolError(f"the warden reported an unknown kind of end ({how})")
        event = Exited(ident, value) if how == 0 else Exited(ident, -1, value)
    elif kind == 69:
        event = Done(reader.u32(), reader.u32(), reader.blob().decode("utf-8", "backslashreplace"))
    else:
        raise ProtocolError(f"the warden sent an unknown message ({kind})")
    reader.end()
    if fds and kind != 66:
        raise ProtocolError("the warden sent a descriptor where none belongs")
    return event
