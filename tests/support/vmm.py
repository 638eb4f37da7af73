"""QEMU started by hand, with any devices, and spoken to over its monitor: for what no plan does (yet)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from cloche.domain.prepare import choose_kernel
from cloche.host.facts import collect_facts
from cloche.host.reactor import Reactor
from cloche.host.tools import require_own_binary
from support.agents import Guest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

MEMORY_MIB = 128
#: How long a test waits for something that must happen before it fails.
PATIENCE_S = 60.0

#: Where QEMU's microvm has its eight virtio-mmio transports, and the interrupt of the first.
_SLOT_BASE, _SLOT_BYTES, _FIRST_IRQ = 0xFEB00000, 512, 5
#: The transport of the control port: there from the first boot on.
CONTROL_SLOT = 7
#: Since when QEMU saves to a file that it is told by name.
_FILE_SINCE = (8, 2)

#: As in every run (guest/cmdline.md gives the reasons).
_WORDS = "tsc=reliable lapic_timer_hz=1000000000 init_on_alloc=1 rcupdate.rcu_expedited=1"


class Qemu(NamedTuple):
    """A QEMU to be started.

    Attributes:
        version: (major, minor).
        words: The program, and the options that tell it where its files are.
        environment: What it needs to be told besides.
    """

    version: tuple[int, int]
    words: tuple[str, ...]
    environment: dict[str, str]


class QemuError(Exception):
    """What QEMU has refused, or said before it ended, in its own words."""


class Vmm:
    """One running QEMU.

    Attributes:
        control: The path of the socket behind the control port.
    """

    def __init__(self, qemu: Qemu, directory: Path, devices: Sequence[str], *, incoming: bool) -> None:
        self.qemu = qemu
        self.control = str(directory / "control")
        self.memory = directory / "memory"
        self._events: list[dict[str, Any]] = []
        self._said = ""
        ours, theirs = socket.socketpair()
        with theirs, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.control)
            listener.listen()
            words = _build_argv(qemu, self.memory, devices, theirs.fileno(), listener.fileno())
            if incoming:
                words += ["-incoming", "defer"]
            self.process = subprocess.Popen(
                words,
                pass_fds=[theirs.fileno(), listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={**os.environ, **qemu.environment},
            )
        ours.settimeout(PATIENCE_S)
        self._monitor = ours
        self._lines = ours.makefile("rb")
        try:
            self._receive()  # the greeting
            self.ask("qmp_capabilities")
            self.ask("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
        except QemuError:
            self.close()
            raise

    # The monitor

    def ask(self, command: str, **arguments: object) -> Any:
        """Have the monitor do something; return its answer.

        Raises:
            QemuError: It refuses.
        """
        request = json.dumps({"execute": command, "arguments": arguments}).encode()
        with suppress(BrokenPipeError):  # the answer says that it has ended
            self._monitor.sendall(request)
        while True:
            message = self._receive()
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise QemuError(message["error"]["desc"])
            self._events.append(message)

    def wait_for(self, event: str, **data: object) -> dict[str, Any]:
        """Wait for an event with these data, which may have come before; earlier events are forgotten."""
        while True:
            message = self._events.pop(0) if self._events else self._receive()
            found = message.get("data", {})
            if message.get("event") == event and data.items() <= found.items():
                return message
            if message.get("event") == "MIGRATION" and found.get("status") == "failed":
                raise QemuError(self._why_failed())

    def _why_failed(self) -> str:
        return str(self.ask("query-migrate").get("error-desc") or self.said())

    def _receive(self) -> dict[str, Any]:
        line = b""
        with suppress(ConnectionResetError):
            line = self._lines.readline()
        if not line:
            raise QemuError(self.said())
        message = json.loads(line)
        assert isinstance(message, dict)
        return message

    def said(self) -> str:
        """End it, and return what it has said on stderr."""
        self.process.kill()
        assert self.process.stderr is not None
        self._said += self.process.stderr.read().decode()
        self.process.wait()
        return self._said.strip()

    def close(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()
        self._lines.close()
        self._monitor.close()

    # Its state

    def save(self, state: Path, *, with_memory: bool = False) -> None:
        """Save it; afterwards it stands still. Its memory lies in ``memory``, or in the state, too.

        Raises:
            QemuError: It cannot be saved.
        """
        self.start_saving(state, with_memory=with_memory)
        self.wait_for("MIGRATION", status="completed")

    def start_saving(self, state: Path, *, with_memory: bool) -> None:
        """Begin to save it.

        Raises:
            QemuError: It cannot be saved.
        """
        self._ignore_memory(not with_memory)
        self.ask("migrate", uri=self._place(state, os.O_WRONLY | os.O_CREAT))

    def load(self, state: Path, *, with_memory: bool = False) -> None:
        """Load what was saved, and go on.

        Raises:
            QemuError: It cannot be loaded.
        """
        self._ignore_memory(not with_memory)
        self.ask("migrate-incoming", uri=self._place(state, os.O_RDONLY))
        self.wait_for("MIGRATION", status="completed")
        self.ask("cont")

    def _ignore_memory(self, ignored: bool) -> None:
        state = {"capability": "x-ignore-shared", "state": ignored}
        self.ask("migrate-set-capabilities", capabilities=[state])

    def _place(self, state: Path, flags: int) -> str:
        if self.qemu.version >= _FILE_SINCE:
            return f"file:{state}"
        fd = os.open(state, flags, 0o600)
        request = json.dumps({"execute": "getfd", "arguments": {"fdname": "state"}}).encode()
        socket.send_fds(self._monitor, [request], [fd])
        os.close(fd)
        while "return" not in (message := self._receive()):
            self._events.append(message)
        return "fd:state"


def _build_argv(qemu: Qemu, memory: Path, devices: Sequence[str], monitor: int, control: int) -> list[str]:
    kernel = choose_kernel("built", require_own_binary("cloche-agent"))
    slots = [
        f"virtio_mmio.device={_SLOT_BYTES}@{_SLOT_BASE + slot * _SLOT_BYTES:#x}:{_FIRST_IRQ + slot}:{slot}"
        # The agent takes the port of the guest's first device.
        for slot in (CONTROL_SLOT, *range(CONTROL_SLOT))
    ]
    # A guest that has to measure its clock on a busy host may measure nonsense, and then wait for ever.
    khz = collect_facts().tsc_khz
    clock = f"tsc_early_khz={khz} lpj={khz * 10}" if khz else "no_timer_check"
    legacy = "off" if khz else "on"
    line = (
        f"panic=-1 reboot=t quiet earlyprintk=ttyS0,keep swiotlb=noforce {_WORDS} {clock} {' '.join(slots)}"
    )
    return [
        *qemu.words,
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-S"),
        *(
            "-machine",
            f"microvm,acpi=off,pit={legacy},pic={legacy},rtc=on,auto-kernel-cmdline=off,memory-backend=memory",
        ),
        *("-accel", "tcg,thread=single", "-cpu", "max,-erms,-fsrm", "-m", f"{MEMORY_MIB}M"),
        *("-object", f"memory-backend-file,id=memory,size={MEMORY_MIB}M,mem-path={memory},share=on"),
        *("-kernel", kernel.path, "-initrd", kernel.initrd, "-append", line),
        *("-global", "virtio-mmio.force-legacy=false"),
        *("-serial", "chardev:console", "-chardev", "file,id=console,path=/dev/stderr"),
        *("-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "chardev=monitor,mode=control"),
        *("-chardev", f"socket,id=control,fd={control},server=on,wait=off"),
        *("-device", f"virtio-serial-device,bus=virtio-mmio-bus.{CONTROL_SLOT},max_ports=2"),
        *("-device", "virtserialport,id=port,nr=1,chardev=control,name=cloche.0"),
        *devices,
    ]


@contextmanager
def vmm(qemu: Qemu, directory: Path, devices: Sequence[str] = (), *, incoming: bool = False) -> Iterator[Vmm]:
    """Provide a QEMU that waits for ``cont``, or (``incoming``) for a state to be loaded.

    Args:
        qemu: Which.
        directory: Where its memory and its socket are; it must be on a tmpfs, and is its own.
        devices: Options for devices besides the control port.
        incoming: Whether it waits for a state.
    """
    made = Vmm(qemu, directory, devices, incoming=incoming)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def session(path: str) -> Iterator[Guest]:
    """Provide a conversation with the agent behind a control port; what is asked is sent when it answers."""
    with Reactor() as reactor:
        guest = Guest(reactor, path)
        guest.session.attach()
        try:
            yield guest
        finally:
            guest.session.close()
