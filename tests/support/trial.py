"""Trying out what QEMU allows a device: to be there at the boot, to be added at a restore, to be saved while it is used.

Device processes run without their jails here, so that a trial needs nothing but QEMU; the filters that they put on
themselves are on, and those are what could keep a device from moving its state.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import struct
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cloche.guest.messages import SetupDone
from cloche.host.tools import require_own_binary
from cloche.model.guest import BindDevice, GuestCommand, Mkdir, Mount, WaitPath, WriteFile
from support.disks import empty_qcow2
from support.standin import stand_in
from support.vmm import PATIENCE_S, Qemu, QemuError, session, vmm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from cloche.guest.job import Job
    from cloche.guest.messages import SetupFailed
    from cloche.model.guest import Step
    from support.agents import Guest
    from support.vmm import Vmm

#: The transport for the device that is tried.
SLOT = 6
DISK_BYTES = 16 << 20
FILE_BYTES = 1 << 20
_GUEST_CID = 5

_BUS = f"bus=virtio-mmio-bus.{SLOT}"
_PROGRAM = b"/run/guestio"
_MOUNT = "/run/trial"
_SOURCE = Path(__file__).with_name("guestio.c")


class Template(NamedTuple):
    """A booted machine that waits for its host, with nothing but the control port."""

    state: Path
    memory: Path


class Outcome(NamedTuple):
    """What came of a trial: of each way either nothing (it works) or what QEMU said."""

    added_at_restore: str
    saved: str


class Toolbox(NamedTuple):
    """What every trial needs.

    Attributes:
        qemu: With which QEMU.
        template: A template of that QEMU.
        program: ``guestio.c``, compiled.
        room: A directory on a tmpfs.
    """

    qemu: Qemu
    template: Template
    program: Path
    room: Path

    def directory(self, name: str) -> Path:
        """Make a directory of this trial's."""
        path = self.room / name
        path.mkdir()
        return path


def compile_program(path: Path) -> Path:
    """Compile ``guestio.c`` as a program that runs anywhere."""
    flags = ("-O1", "-Wall", "-Wextra", "-Werror", "-static")
    subprocess.run(["gcc", *flags, "-o", str(path), str(_SOURCE)], check=True)
    return path


def copy_memory(source: Path, target: Path) -> None:
    """Copy a guest's memory; its holes stay holes."""
    subprocess.run(["cp", "--sparse=always", str(source), str(target)], check=True)


def make_template(qemu: Qemu, room: Path) -> Template:
    """Boot a machine until its agent waits, and save it."""
    with vmm(qemu, room) as first:
        first.ask("cont")
        first.wait_for("VSERPORT_CHANGE", open=True)
        first.ask("stop")
        first.save(room / "state")
    return Template(room / "state", first.memory)


@contextmanager
def backend(scratch: Path, program: str, *words: str, pass_fds: Sequence[int] = ()) -> Iterator[str]:
    """Provide a device process and the path of its socket.

    Args:
        scratch: Where its socket is, and ``said`` with what it says.
        program: Its name, or a path.
        words: Its arguments but ``--fd``.
        pass_fds: Descriptors that it has besides its socket.
    """
    path = scratch / "device"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener, open(scratch / "said", "ab") as said:
        listener.bind(str(path))
        listener.listen()
        executable = program if "/" in program else require_own_binary(program)
        process = subprocess.Popen(
            [executable, "--fd", str(listener.fileno()), *words],
            pass_fds=[listener.fileno(), *pass_fds],
            stderr=said,
        )
    try:
        yield str(path)
    finally:
        process.kill()
        process.wait()


# What is done in the guest


def setup(guest: Guest, *steps: Step) -> None:
    """Have the agent do these steps."""
    answers: list[SetupDone | SetupFailed] = []
    guest.session.setup(steps, answers.append)
    assert guest.reactor.run_until(lambda: bool(answers or guest.lost), PATIENCE_S), "the agent does not answer"
    assert answers and isinstance(answers[0], SetupDone), answers or guest.lost


def run(guest: Guest, *words: str, data: bytes | None = None) -> bytes:
    """Run the guest's program to its end; return what it says."""
    status, out, err = guest.run(_command(*words), data)
    assert status == 0, err
    return out


def _command(*words: str) -> GuestCommand:
    argv = (_PROGRAM, *(os.fsencode(word) for word in words))
    return GuestCommand(argv, (), b"/", 0, 0)


class Work:
    """A program of the guest that goes on and on, and knows at its end whether all was right.

    Args:
        guest: Where it runs.
        words: Its arguments.
    """

    def __init__(self, guest: Guest, *words: str) -> None:
        self._guest = guest
        self._out, self._err = bytearray(), bytearray()
        theirs, self._stdin = os.pipe()
        self._job: Job = guest.start(
            _command(*words), stdin=theirs, stdout=self._out.extend, stderr=self._err.extend
        )
        os.close(theirs)
        self.go_on()

    def go_on(self) -> None:
        """Wait until it has gone round some more."""
        wanted = self._out.count(b"\n") + 3
        done = self._guest.reactor.run_until(
            lambda: self._out.count(b"\n") >= wanted or self._job.done or bool(self._guest.lost), PATIENCE_S
        )
        assert done, "the guest stands still"
        assert not self._job.done and not self._guest.lost, (bytes(self._err), self._guest.lost)

    def finish(self) -> str:
        """End it; return what was wrong, or nothing."""
        os.close(self._stdin)
        status = self._guest.wait(self._job, PATIENCE_S)
        if status != 0:
            return self._err.decode()
        *rounds, last = self._out.decode().splitlines()
        # Nothing on the way to the host was lost or doubled either.
        assert rounds == [str(number) for number in range(1, len(rounds) + 1)]
        assert last == f"right {len(rounds)}"
        return ""


# The devices


class Device:
    """A device to be tried; ``scratch`` is a directory of its own, with ``old``, a file that the guest can check.

    Attributes:
        kind: Its name in ``cloche.drivers.qemu.abilities``.
        name: Its name among the trials.
        steps: What makes it usable in the guest.
    """

    kind: str
    name: str
    steps: tuple[Step, ...] = ()

    def prepare(self, scratch: Path, program: Path) -> None:
        """Make what it keeps."""

    def start(self, scratch: Path) -> AbstractContextManager[list[str]]:
        """Start its process, if it has one; provide the options for QEMU."""
        raise NotImplementedError

    def use(self, guest: Guest, scratch: Path) -> None:
        """Use it in the guest, and see that it works."""
        raise NotImplementedError

    def begin(self, guest: Guest) -> Work:
        """Begin to use it without end."""
        raise NotImplementedError


class _Files(Device):
    writes_to: str

    def prepare(self, scratch: Path, program: Path) -> None:
        (scratch / "root").mkdir()
        subprocess.run([str(program), "make", str(scratch / "root" / "old"), str(FILE_BYTES)], check=True)

    def use(self, guest: Guest, scratch: Path) -> None:
        found = run(guest, "read", f"{_MOUNT}/old", str(FILE_BYTES))
        assert found == (scratch / "root" / "old").read_bytes()

    def begin(self, guest: Guest) -> Work:
        return Work(guest, "files", f"{_MOUNT}/old", self.writes_to)


class SharedFiles(_Files):
    """A file server of ours."""

    kind = "vhost-user-fs"
    steps = (Mkdir(_MOUNT.encode()), Mount(b"virtiofs", b"trial", _MOUNT.encode()))

    def __init__(self, cache: str) -> None:
        self.name = f"fs-{cache}"
        self._words = ("--cache", cache, "--ids", "squash-root" if cache == "forever" else "host")
        # The system tree is read-only.
        self.writes_to = "/run/new" if cache == "forever" else f"{_MOUNT}/new"

    @contextmanager
    def start(self, scratch: Path) -> Iterator[list[str]]:
        """See ``Device``."""
        with backend(scratch, "cloche-fs", "--root", str(scratch / "root"), *self._words) as path:
            options = "chardev=device,tag=trial,queue-size=512"
            yield [*_socket(path), "-device", f"vhost-user-fs-device,{_BUS},{options}"]


class PlanNine(_Files):
    """QEMU's own file server."""

    kind = name = "virtio-9p"
    steps = (
        Mkdir(_MOUNT.encode()),
        Mount(b"9p", b"trial", _MOUNT.encode(), 0, b"trans=virtio,version=9p2000.L"),
    )
    writes_to = f"{_MOUNT}/new"

    @contextmanager
    def start(self, scratch: Path) -> Iterator[list[str]]:
        """See ``Device``."""
        folder = f"local,id=device,path={scratch / 'root'},security_model=none"
        yield ["-fsdev", folder, "-device", f"virtio-9p-device,{_BUS},fsdev=device,mount_tag=trial"]


class _Disk(Device):
    steps = (WaitPath(b"/dev/vda", 10000),)
    image_format = "raw"

    def prepare(self, scratch: Path, program: Path) -> None:
        image = scratch / "image"
        if self.image_format == "qcow2":
            image.write_bytes(empty_qcow2(DISK_BYTES))
        else:
            subprocess.run([str(program), "make", str(image), str(DISK_BYTES)], check=True)

    def use(self, guest: Guest, scratch: Path) -> None:
        data = secrets.token_bytes(FILE_BYTES)
        run(guest, "write", "/dev/vda", data=data)
        assert run(guest, "read", "/dev/vda", str(FILE_BYTES)) == data

    def begin(self, guest: Guest) -> Work:
        return Work(guest, "pages", "/dev/vda")


class OwnDisk(_Disk):
    """A disk of ours; ``program`` may be another build of it."""

    kind = "vhost-user-blk"

    def __init__(self, image_format: str = "raw", program: str = "cloche-disk") -> None:
        self.name = f"blk-{image_format}"
        self.image_format = image_format
        self._program = program

    @contextmanager
    def start(self, scratch: Path) -> Iterator[list[str]]:
        """See ``Device``."""
        with open(scratch / "image", "r+b") as image:
            number = image.fileno()
            words = ("--image-fd", str(number), "--format", self.image_format, "--tag", "trial")
            with backend(scratch, self._program, *words, pass_fds=[number]) as path:
                options = "chardev=device,num-queues=1,queue-size=1024,config-wce=off"
                yield [*_socket(path), "-device", f"vhost-user-blk,{_BUS},{options}"]


class QemuDisk(_Disk):
    """QEMU's own disk."""

    kind = name = "virtio-blk"

    @contextmanager
    def start(self, scratch: Path) -> Iterator[list[str]]:
        """See ``Device``."""
        drive = f"if=none,id=device,format=raw,file={scratch / 'image'}"
        yield ["-drive", drive, "-device", f"virtio-blk-device,{_BUS},drive=device"]


class _Numbers(Device):
    def use(self, guest: Guest, scratch: Path) -> None:
        first, second = (run(guest, "read", "/dev/hwrng", "64") for _ in range(2))
        assert len(first) == len(second) == 64
        assert first != second

    def begin(self, guest: Guest) -> Work:
        return Work(guest, "random", "/dev/hwrng")


class OwnNumbers(_Numbers):
    """Random numbers of ours."""

    kind = name = "vhost-user-rng"

    @contextmanager
    def start(self, scratch: Path) -> Iterator[list[str]]:
        """See ``Device``."""
        with backend(scratch, "cloche-rng") as path:
            yield [*_socket(path), "-device", f"vhost-user-rng,{_BUS},chardev=device"]


class QemuNumbers(_Numbers):
    """QEMU's own random numbers."""

    kind = name = "virtio-rng"

    @contextmanager
    def start(self, scratch: Path) -> Iterator[list[str]]:
        """See ``Device``."""
        source = "rng-random,id=device,filename=/dev/urandom"
        yield ["-object", source, "-device", f"virtio-rng-device,{_BUS},rng=device"]


class Ports(Device):
    """A second set of ports; the first is the control port's, by which every other trial speaks with its guest."""

    kind = name = "virtio-serial"
    steps = (WaitPath(b"/dev/vport1p1", 10000),)

    @contextmanager
    def start(self, scratch: Path) -> Iterator[list[str]]:
        """See ``Device``."""
        yield [
            *("-chardev", f"file,id=device,path={scratch / 'port'}"),
            *("-device", f"virtio-serial-device,{_BUS},id=second,max_ports=2"),
            *("-device", "virtserialport,bus=second.0,nr=1,chardev=device,name=trial.0"),
        ]

    def use(self, guest: Guest, scratch: Path) -> None:
        """See ``Device``."""
        data = secrets.token_bytes(1 << 16)
        # The guest counts from the lowest transport on at the boot, and from the first that is there later.
        name = run(guest, "read", "/sys/class/virtio-ports/vport0p1/name", "7")
        port = "/dev/vport0p1" if name == b"trial.0" else "/dev/vport1p1"
        run(guest, "write", port, data=data)
        assert (scratch / "port").read_bytes().endswith(data)

    def begin(self, guest: Guest) -> Work:
        """See ``Device``."""
        return Work(guest, "random", "/dev/urandom")


class Sockets(Device):
    """A vsock device. What stands behind it is not even asked whether it could be saved, so a stand-in will do."""

    kind = name = "vhost-user-vsock"

    @contextmanager
    def start(self, scratch: Path) -> Iterator[list[str]]:
        """See ``Device``."""
        path = scratch / "device"
        with stand_in(path, struct.pack("<Q", _GUEST_CID)):
            yield [*_socket(str(path)), "-device", f"vhost-user-vsock-device,{_BUS},chardev=device"]

    def use(self, guest: Guest, scratch: Path) -> None:
        """See that the guest has found it."""
        assert run(guest, "read", "/sys/bus/virtio/devices/virtio0/device", "6") == b"0x0013"

    def begin(self, guest: Guest) -> Work:
        """See ``Device``."""
        return Work(guest, "random", "/dev/urandom")


def _socket(path: str) -> tuple[str, str]:
    return "-chardev", f"socket,id=device,path={path}"


#: A new kind of device is tried by writing a class for it and adding it here.
DEVICES: dict[str, Callable[[], Device]] = {
    "fs-forever": lambda: SharedFiles("forever"),
    "fs-coherent": lambda: SharedFiles("coherent"),
    "blk-raw": lambda: OwnDisk("raw"),
    "blk-qcow2": lambda: OwnDisk("qcow2"),
    "vhost-user-rng": OwnNumbers,
    "vhost-user-vsock": Sockets,
    "virtio-serial": Ports,
    "virtio-blk": QemuDisk,
    "virtio-rng": QemuNumbers,
    "virtio-9p": PlanNine,
}


# The trial


def try_device(device: Device, tools: Toolbox) -> Outcome:
    """Try a device in all three ways. That it works when it is there at the boot is taken for granted.

    Whatever works by halves (is added and gives wrong data, is saved and stands still) fails here.
    """
    scratch = prepare(device, tools)
    return Outcome(_try_to_add(device, tools, scratch), _try_to_save(device, tools, scratch))


def prepare(device: Device, tools: Toolbox) -> Path:
    """Make a directory with what the device keeps."""
    scratch = tools.directory("device")
    device.prepare(scratch, tools.program)
    return scratch


def _try_to_add(device: Device, tools: Toolbox, scratch: Path) -> str:
    place = tools.directory("added")
    copy_memory(tools.template.memory, place / "memory")
    with ExitStack() as stack:
        words = stack.enter_context(device.start(scratch))
        try:
            machine = stack.enter_context(vmm(tools.qemu, place, words, incoming=True))
            machine.load(tools.template.state)
        except QemuError as error:
            return str(error)
        guest = stack.enter_context(session(machine.control))
        setup(guest, BindDevice(b"virtio-mmio.%d" % SLOT), *bring_up(device, tools.program))
        device.use(guest, scratch)
    return ""


def bring_up(device: Device, program: Path) -> tuple[Step, ...]:
    """Return the steps that make a device usable in a guest, with the program that uses it."""
    return (*device.steps, WriteFile(_PROGRAM, 0o755, 0, 0, program.read_bytes()))


def _try_to_save(device: Device, tools: Toolbox, scratch: Path) -> str:
    try:
        save_and_load(device, tools, scratch)
    except QemuError as error:
        return str(error)
    return ""


def save_and_load(
    device: Device, tools: Toolbox, scratch: Path, meanwhile: Callable[[], None] | None = None
) -> None:
    """Boot a machine, save it while it uses the device, load it with a new process behind the device, and go on.

    Raises:
        QemuError: It cannot be saved, or not loaded.
    """
    before, after = tools.directory("before"), tools.directory("after")
    with ExitStack() as stack:
        with ExitStack() as first:
            machine = _boot(device, tools, before, scratch, first)
            guest = stack.enter_context(session(machine.control))
            setup(guest, *bring_up(device, tools.program))
            device.use(guest, scratch)
            work = device.begin(guest)
            machine.save(before / "state")
        if meanwhile is not None:
            meanwhile()
        shutil.move(machine.memory, after / "memory")
        words = stack.enter_context(device.start(scratch))
        machine = stack.enter_context(vmm(tools.qemu, after, words, incoming=True))
        machine.load(before / "state")
        guest.path = machine.control
        work.go_on()
        assert work.finish() == ""
        device.use(guest, scratch)


def _boot(device: Device, tools: Toolbox, place: Path, scratch: Path, stack: ExitStack) -> Vmm:
    try:
        words = stack.enter_context(device.start(scratch))
        machine = stack.enter_context(vmm(tools.qemu, place, words))
        machine.ask("cont")
    except QemuError as error:
        raise AssertionError(f"the machine does not even start: {error}") from error
    return machine


def try_moving_memory(
    disk: OwnDisk, tools: Toolbox, *, with_memory: bool, loading: OwnDisk | None = None
) -> str:
    """Save a machine while its disk fills memory that no program touches, and load it; return what was wrong then.

    Args:
        disk: The disk.
        tools: What every trial needs.
        with_memory: Whether the memory is copied into the state page by page, while the machine goes on, or lies in
            a file of its own that both machines use.
        loading: Another build of the disk, for the machine that is loaded.
    """
    scratch, before, after = prepare(disk, tools), tools.directory("before"), tools.directory("after")
    with ExitStack() as stack:
        with ExitStack() as first:
            machine = _boot(disk, tools, before, scratch, first)
            guest = stack.enter_context(session(machine.control))
            setup(guest, *bring_up(disk, tools.program))
            work = Work(guest, "buffers", "/dev/vda")
            if with_memory:
                # Slow at first, so that every page has been copied once when the disk fills it again.
                machine.ask("migrate-set-parameters", **{"max-bandwidth": 16 << 20, "downtime-limit": 1})
                machine.start_saving(before / "state", with_memory=True)
                machine.wait_for("MIGRATION_PASS", **{"pass": 2})
                work.go_on()
                machine.ask("migrate-set-parameters", **{"max-bandwidth": 1 << 40, "downtime-limit": 60000})
                machine.wait_for("MIGRATION", status="completed")
            else:
                machine.save(before / "state")
        if not with_memory:
            shutil.move(machine.memory, after / "memory")
        words = stack.enter_context((loading or disk).start(scratch))
        machine = stack.enter_context(vmm(tools.qemu, after, words, incoming=True))
        machine.load(before / "state", with_memory=with_memory)
        guest.path = machine.control
        return work.finish()
