"""QEMU's monitor while the machine runs (layer 4): pausing it, saving its devices, and letting it go on.

QMP is one JSON object a line; commands carry a number, answers the same one, and events none (docs/interop/qmp-spec).
QEMU is not trusted once it runs: what it says is bounded, and nothing of it is believed but that it has said so.
"""

from __future__ import annotations

import os
import sys

from cloche.errors import DomainError
from cloche.host.reactor import READ
from cloche.host.text import escape_untrusted
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.errors import ClocheError
    from cloche.host.reactor import Reactor, Timer
    from cloche.lean import socket

    Done = Callable[[ClocheError | None], None]

_PATIENCE_S = 10.0
#: A machine that takes longer to write down its devices is stuck, in seconds: they are some hundred KiB.
_SAVING_S = 60.0
#: The set of descriptors in QEMU that has the file for the state. Those of its command line have lower numbers.
_FDSET = 100
#: socket(7), unix(7); the module with these names is not imported for them.
_SOL_SOCKET, _SCM_RIGHTS = 1, 1
_LONGEST_LINE = 1 << 20


class QmpControl:
    """The supervisor's end of a monitor."""

    def __init__(self, reactor: Reactor, connection: socket.socket, greeted: bool) -> None:
        """Take the connection over; one that was not ``greeted`` takes commands after its own greeting."""
        self._reactor = reactor
        self._socket = connection
        self._socket.setblocking(False)
        self._heard = b""
        self._last = 0
        self._asked: dict[int, tuple[Done, Timer]] = {}
        self._saving: Done | None = None
        self._late: Timer | None = None
        self._why = 0
        self._has_file = False
        reactor.register(connection.fileno(), READ, self._read)
        if not greeted:
            self._ask("qmp_capabilities", _nothing)

    def pause(self, done: Done) -> None:
        """Stop the guest's clock and CPUs."""
        self._ask("stop", done)

    def resume(self, done: Done) -> None:
        """Go on; what a save was written to is closed when that is done."""
        if not self._has_file:
            self._ask("cont", done)
            return
        # QEMU closes it only while the machine runs. Open, it would keep the file system of a snapshot in use.
        self._has_file = False
        said: list[ClocheError | None] = []
        self._ask("cont", said.append)
        self._ask("remove-fd", lambda error: done(said[0] if said else error), {"fdset-id": _FDSET})

    def save(self, state: int, done: Done) -> None:
        """Stop it and write the devices' state to an open file; see ``Control``."""
        self._saving = done
        self._late = self._reactor.call_later(_SAVING_S, lambda: self._saved("does not finish it"))
        # QEMU takes a descriptor whose access mode is the one it would have opened the file with.
        file = os.open(f"/proc/self/fd/{state}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            # The memory is not part of the state: it lies in a file that is shared.
            names = ("x-ignore-shared", "events")
            capabilities = [{"capability": name, "state": True} for name in names]
            self._ask("migrate-set-capabilities", self._begun, {"capabilities": capabilities})
            self._has_file = True
            self._ask("add-fd", self._begun, {"fdset-id": _FDSET}, file)
            self._ask("migrate", self._begun, {"uri": f"file:/dev/fdset/{_FDSET}"})
        finally:
            os.close(file)

    def _begun(self, error: ClocheError | None) -> None:
        if error is not None:
            self._saved("", error)

    def _saved(self, why: str, error: ClocheError | None = None) -> None:
        saving, self._saving = self._saving, None
        if self._late is not None:
            self._late.cancel()
        if saving is not None:
            saving(DomainError(f"the machine's monitor {why}") if why else error)

    def _ask(
        self, command: str, done: Done, arguments: dict[str, object] | None = None, fd: int = -1
    ) -> None:
        self._last += 1
        number = self._last
        timer = self._reactor.call_later(_PATIENCE_S, lambda: self._over(number, "does not answer"))
        self._asked[number] = done, timer
        if arguments is None:
            request = b'{"execute":"%s","id":%d}\n' % (command.encode(), number)
        else:
            import json

            request = json.dumps({"execute": command, "arguments": arguments, "id": number}).encode()
        control = [(_SOL_SOCKET, _SCM_RIGHTS, fd.to_bytes(4, sys.byteorder))] if fd >= 0 else []
        try:
            self._socket.sendmsg([request], control)
        except OSError as error:
            self._over(number, f"cannot be told: {error.strerror}")

    def _read(self, events: int) -> None:
        del events
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._heard += data
        if not data or len(self._heard) > _LONGEST_LINE:
            # The end of the machine is heard elsewhere, with its reason.
            self.close()
            return
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            self._take(line)

    def _take(self, line: bytes) -> None:
        import json

        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            return
        if isinstance(said, dict) and said.get("event") == "MIGRATION":
            self._note(said.get("data"))
            return
        number = said.get("id") if isinstance(said, dict) else None
        if (
            not isinstance(number, int)
            or number not in self._asked
            or not ("return" in said or "error" in said)
        ):
            return
        if number == self._why:
            result = said.get("return")
            words = result.get("error-desc") if isinstance(result, dict) else None
            self._saved(f"says: {escape_untrusted(str(words).encode('utf-8', 'backslashreplace'), 200)}")
        error = said.get("error")
        why = ""
        if error is not None:
            words = error.get("desc") if isinstance(error, dict) else None
            why = f"refuses: {escape_untrusted(str(words).encode('utf-8', 'backslashreplace'), 200)}"
        self._over(number, why)

    def _note(self, data: object) -> None:
        """Take an event: how far a save is. Why one has failed QEMU says to who asks."""
        status = data.get("status") if isinstance(data, dict) else None
        if status == "completed":
            self._saved("")
        elif status in ("failed", "cancelled"):
            self._ask("query-migrate", _nothing)
            self._why = self._last

    def _over(self, number: int, why: str) -> None:
        done, timer = self._asked.pop(number, (_nothing, None))
        if timer is not None:
            timer.cancel()
        done(
            DomainError(f"the machine's monitor {why}", hint="`cloche stop` ends the domain.")
            if why
            else None
        )

    def close(self) -> None:
        """Listen no more; what was asked fails. May be called twice."""
        if self._socket.fileno() >= 0:
            self._reactor.unregister(self._socket.fileno())
            self._socket.close()
        for number in list(self._asked):
            self._over(number, "is gone")
        self._saved("is gone")


def _nothing(error: ClocheError | None) -> None:
    """Nobody waits for this answer."""
    del error
