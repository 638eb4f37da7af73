"""The devices whose abilities are tried (``support.trial``): how each is started, brought up and used.

Device processes run without their jails here, so that a trial needs nothing but QEMU; the filters that they put on
themselves are on, and those are what could keep a device from moving its state.
"""

from __future__ import annotations

import secrets
import socket
import struct
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cloche.drivers.qemu.network import COMMANDS
from cloche.host.tools import require_own_binary
from cloche.model.guest import Mkdir, Mount, WaitPath
from support.disks import empty_qcow2
from support.frames import echo
from support.guestwork import Work, run
from support.standin import stand_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from cloche.model.guest import Step
    from support.agents import Guest

#: The transport for the device that is tried.
SLOT = 6
DISK_BYTES = 16 << 20
FILE_BYTES = 1 << 20
_GUEST_CID = 5
_CARD = "02:00:00:00:00:01"

_BUS = f"bus=virtio-mmio-bus.{SLOT}"
_MOUNT = "/run/trial"


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


class Device:
    """A device to be tried; ``scratch`` is a directory of its own, with ``old``, a file that the guest can check.

    Attributes:
        kind: Its name in ``cloche.drivers.qemu.abilities``.
        name: Its name among the trials.
        steps: What makes it usable in the guest.
    """

    kind: str = ""
    name: str = ""
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
    writes_to: str = ""

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
        del scratch
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
        del scratch
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
        del scratch
        source = "rng-random,id=device,filename=/dev/urandom"
        yield ["-object", source, "-device", f"virtio-rng-device,{_BUS},rng=device"]


class OwnCard(Device):
    """A network card whose front is ours; whoever stands behind it sends every frame back."""

    kind = name = "virtio-net"
    steps = (WaitPath(b"/sys/class/net/eth0", 10000),)

    @contextmanager
    def start(self, scratch: Path) -> Iterator[list[str]]:
        """See ``Device``."""
        with echo() as peer:
            words = ("--mac", _CARD, "--peer-fd", str(peer))
            with backend(scratch, "cloche-net", *words, pass_fds=[peer]) as path:
                options = ",".join((f"mac={_CARD}", "host_mtu=1500", *(f"{word}=off" for word in COMMANDS)))
                yield [
                    *_socket(path),
                    *("-netdev", "vhost-user,id=front,chardev=device"),
                    *("-device", f"virtio-net-device,{_BUS},netdev=front,{options}"),
                ]

    def use(self, guest: Guest, scratch: Path) -> None:
        """See ``Device``."""
        del scratch
        assert run(guest, "read", "/sys/class/net/eth0/address", "17") == _CARD.encode()
        assert run(guest, "frames", "eth0") == b"1\nright 1\n"

    def begin(self, guest: Guest) -> Work:
        """See ``Device``."""
        return Work(guest, "frames", "eth0")


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
        run(guest, "write", "/dev/vport1p1", data=data)
        assert (scratch / "port").read_bytes().endswith(data)

    def begin(self, guest: Guest) -> Work:
        """See ``Device``."""
        return Work(guest, "random", "/dev/urandom")


class Balloon(Device):
    """The device by which memory is given back."""

    kind = name = "virtio-balloon"

    @contextmanager
    def start(self, scratch: Path) -> Iterator[list[str]]:
        """See ``Device``."""
        del scratch
        yield ["-device", f"virtio-balloon-device,{_BUS},free-page-reporting=on"]

    def use(self, guest: Guest, scratch: Path) -> None:
        """See that its driver has it; what it does for a guest is ``test_memory``'s."""
        del scratch
        assert run(guest, "read", "/sys/bus/virtio/drivers/virtio_balloon/virtio1/device", "6") == b"0x0005"

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
        del scratch
        assert run(guest, "read", "/sys/bus/virtio/devices/virtio1/device", "6") == b"0x0013"

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
    "net": OwnCard,
    "virtio-serial": Ports,
    "virtio-balloon": Balloon,
    "virtio-blk": QemuDisk,
    "virtio-rng": QemuNumbers,
    "virtio-9p": PlanNine,
}
