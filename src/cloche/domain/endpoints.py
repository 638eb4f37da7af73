"""Making the sockets of a plan (layer 5): all of them exist before the first process does."""

from __future__ import annotations

import os

from cloche.errors import HostError, NetworkError
from cloche.lean import socket
from cloche.model.plan import EndpointKind, socket_name
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.host.rundir import RunDirectory
    from cloche.model.plan import Descriptor, Endpoint


class Endpoints:
    """The sockets of one machine: what the processes get, and what the supervisor keeps.

    Args:
        endpoints: What is to be made.
        directory: Where sockets with a name are.
        prefix: What these names begin with: two machines of a domain may have theirs there.

    Raises:
        HostError: They cannot be made.
        NetworkError: One at a path of the caller's choice cannot.
    """

    def __init__(self, endpoints: tuple[Endpoint, ...], directory: RunDirectory, prefix: str = "") -> None:
        self._directory = directory
        self._prefix = prefix
        self._sides: dict[tuple[str, str], socket.socket] = {}
        try:
            for endpoint in endpoints:
                self._make(endpoint)
        except NetworkError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise HostError(
                f"cannot make the sockets of the domain in {directory.path}: {error.strerror}",
                hint="Free some space there, or set XDG_RUNTIME_DIR to a directory of yours.",
            ) from None

    def _make(self, endpoint: Endpoint) -> None:
        name = endpoint.name
        if endpoint.kind == EndpointKind.JOIN:
            self.join(name)
            return
        if endpoint.kind == EndpointKind.DOOR:
            from cloche.domain.doors import open_door

            self._sides[name, "listen"] = open_door(endpoint.path, self._directory)
            return
        if endpoint.kind == EndpointKind.PAIR:
            self._sides[name, "here"], self._sides[name, "there"] = socket.socketpair()
            return
        path = self._path(name)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sides[name, "listen"] = listener
        with Reach(path) as reachable:
            listener.bind(reachable)
            if os.geteuid() == 0 and endpoint.kind == EndpointKind.LISTEN:
                # Who is to connect is not root. The run directory lets nobody else come here.
                os.chmod(reachable, 0o666)  # noqa: S103
            listener.listen(8)
            if endpoint.kind == EndpointKind.LINK:
                # The backend's queue holds the connection until it accepts it; nobody else can connect any more.
                self._sides[name, "connect"] = connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                connected.connect(reachable)
                os.unlink(path)

    def join(self, name: str) -> None:
        """Make the socket pair of a JOIN, again for each start; ``part`` closes it when both processes have theirs.

        Raises:
            OSError: There are too many open files.
        """
        self._sides[name, "one"], self._sides[name, "other"] = socket.socketpair()

    def part(self, name: str) -> None:
        """Close what was only kept to be passed on of a JOIN, so that each process sees the other one's end."""
        for side in ("one", "other"):
            self._sides.pop((name, side)).close()

    def connect(self, name: str) -> socket.socket:
        """Connect to a LISTEN endpoint, or return the supervisor's side of a PAIR.

        Raises:
            OSError: Nobody listens, or the run directory is gone.
        """
        here = self._sides.pop((name, "here"), None)
        if here is not None:
            return here
        return connect_to(self._path(name))

    def _path(self, name: str) -> str:
        return self._directory.file(self._prefix + socket_name(name))

    def path(self, file: bytes) -> bytes:
        """Return where a socket is that a plan calls so."""
        return os.fsencode(self._directory.file(self._prefix + os.fsdecode(file)))

    def descriptor(self, descriptor: Descriptor) -> int:
        """Return the descriptor that a process is to receive."""
        return self._sides[descriptor.endpoint, descriptor.side].fileno()

    def release(self, *, keep: frozenset[str] = frozenset()) -> None:
        """Close what was only kept to be passed on, so that an end of file means that the process is gone.

        The sockets of the endpoints ``keep`` stay: they are to be passed on again.
        """
        for (name, side), sock in list(self._sides.items()):
            if side != "here" and name not in keep:
                sock.close()
                del self._sides[name, side]

    def close(self) -> None:
        """Close everything."""
        for sock in self._sides.values():
            sock.close()
        self._sides.clear()


def connect_to(path: str, *, wait: bool = True) -> socket.socket:
    """Connect to the Unix stream socket at ``path``, however long that is.

    Args:
        path: Where somebody listens.
        wait: Whether to wait for one who has no time for another connection yet; else that is an error.

    Raises:
        OSError: Nobody listens there, or the path cannot be reached.
    """
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connected.setblocking(wait)
        with Reach(path) as reachable:
            connected.connect(reachable)
    except BaseException:
        connected.close()
        raise
    return connected


class Reach:
    """A path of any length for a Unix socket, whose address holds 107 bytes: through a descriptor of its directory."""

    def __init__(self, path: str) -> None:
        self._directory, self._name = os.path.split(path)
        self._fd = -1

    def __enter__(self) -> str:
        self._fd = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._fd}/{self._name}"

    def __exit__(self, *error: object) -> None:
        os.close(self._fd)
