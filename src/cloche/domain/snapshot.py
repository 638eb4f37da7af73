"""What a snapshot says of itself (layer 5), and whether a machine of today can go on from it.

It is planned anew from what was asked for then; the plan must come to the same VMM with the same words, and what the
domain has of the host must still be there. Nothing of a plan is taken from a file: a snapshot opens no jail.
"""

from __future__ import annotations

import json
import os
import time

from cloche.errors import ShareError, SnapshotError
from cloche.guest.channel import ChannelState  # noqa: TC001 - the fields of records are looked up
from cloche.host import snapshots
from cloche.host.sparse import checksum_memory
from cloche.host.written import from_plain, to_plain
from cloche.model.guest import GuestCommand  # noqa: TC001
from cloche.model.request import RunRequest  # noqa: TC001
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from typing import TypeVar

    from cloche.model.facts import HostFacts
    from cloche.model.plan import LaunchPlan

    Kind = TypeVar("Kind")


class Surroundings(Record):
    """What the machine of a snapshot and one that goes on from it must have in common.

    Attributes:
        host: The host's kernel.
        qemu: The VMM's program: its path, size and time.
        kernel: The guest's kernel.
        counter_khz: The frequency of the counter that an emulated guest reads; 0 where its kernel has measured it.
        words: The VMM's arguments.
    """

    host: str
    qemu: str
    kernel: str
    counter_khz: int
    words: tuple[bytes, ...]


class Known(Record):
    """A file or directory of the host by its path and by what does not change with that.

    Attributes:
        device: Its file system.
        number: Its number there.
        changed_ns: When it was written to last; 0 for what may change.
    """

    path: str
    device: int
    number: int
    changed_ns: int = 0


class Outline(Record):
    """As much of a description as tells which machine goes on from a snapshot: known before anything is saved."""

    surroundings: Surroundings
    request: RunRequest
    devices: int
    balloon: bool


class Beginning(Record):
    """What is known of a snapshot that is going to be made.

    Attributes:
        outline: Which machine goes on from it.
        extents: Which parts of the guest's memory were in use: begin and end of each.
    """

    outline: Outline
    extents: tuple[tuple[int, int], ...]

    @property
    def is_enough(self) -> bool:
        """Whether that machine can be started before the snapshot is there: it needs no copies of disks."""
        return not any(disk.writable for disk in self.outline.request.disks)


class Description(Record):
    """All that is known of a snapshot.

    Attributes:
        made: When, in seconds since the epoch.
        main: The job of the program that the domain was started for; 0 when it has ended, or there is none.
        takes_input: Whether somebody who attaches may give that program input.
        lasting: Whether the domain goes on without any program.
        paused: Whether it was paused, and those that go on from it begin so.
        devices: How many the machine has.
        balloon: Whether the guest gives memory back.
        memory_bytes: The size of the guest's memory.
        used_bytes: How much of it was saved.
        memory_checksum: The CRC-32 of that; 0 for one that is used at once and thrown away.
        state_checksum: The CRC-32 of the devices' state.
        shares: What was shared or copied in, and must still be there: the guest may know files of it.
        disks: Images that are only read, which must not have changed.
    """

    made: float
    surroundings: Surroundings
    request: RunRequest
    command: GuestCommand
    main: int
    takes_input: bool
    lasting: bool
    paused: bool
    channel: ChannelState
    devices: int
    balloon: bool
    memory_bytes: int
    used_bytes: int
    memory_checksum: int
    state_checksum: int
    shares: tuple[Known, ...]
    disks: tuple[Known, ...]

    @property
    def outline(self) -> Outline:
        """Which machine goes on from it."""
        return Outline(self.surroundings, self.request, self.devices, self.balloon)


def describe_surroundings(plan: LaunchPlan) -> Surroundings:
    """Return what a machine of this plan depends on.

    Raises:
        OSError: Its VMM is not there.
    """
    vmm = next(process for process in plan.processes if process.name == "vmm")
    assert plan.machine is not None
    path = os.fsdecode(vmm.argv[0])
    status, uname = os.stat(path), os.uname()
    return Surroundings(
        f"{uname.release} {uname.version}",
        f"{path} of {status.st_size} bytes and {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(status.st_mtime))}",
        plan.machine.kernel.ident,
        plan.machine.tsc_khz,
        vmm.argv,
    )


def know(path: str, *, unchanged: bool = False) -> Known:
    """Return what is at a path.

    Raises:
        OSError: Nothing is.
    """
    status = os.stat(path)
    device = os.statvfs(path).f_fsid or status.st_dev
    return Known(path, device, status.st_ino, status.st_mtime_ns if unchanged else 0)


def write(directory: str, description: Description | Beginning) -> None:
    """Put a description, or what is known of it before, into a snapshot that is being made.

    Raises:
        OSError: There is no room for it.
    """
    name = snapshots.INFO if isinstance(description, Description) else snapshots.OUTLINE
    snapshots.write_file(directory, name, snapshots.format_info(json.dumps(to_plain(description))))


def read(directory: str) -> Description:
    """Return the description of a snapshot.

    Raises:
        SnapshotError: It is damaged, or of another version.
    """
    return _read(directory, snapshots.INFO, Description)


def read_beginning(directory: str) -> Beginning:
    """Return what is known of a snapshot that is being made for forks.

    Raises:
        SnapshotError: It is damaged, or of another version.
    """
    return _read(directory, snapshots.OUTLINE, Beginning)


def _read(directory: str, name: str, kind: type[Kind]) -> Kind:
    text = snapshots.read_info(directory, name)
    try:
        return from_plain(kind, json.loads(text))
    except (ValueError, TypeError, RecursionError):
        raise snapshots.damaged(directory, "its description makes no sense") from None


def check_content(directory: str, description: Description) -> None:
    """Read a whole snapshot and compare it with its description.

    Raises:
        SnapshotError: It is damaged.
    """
    from cloche.domain.restore import checksum_of

    path = os.path.join(directory, snapshots.MEMORY)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            size, found = os.fstat(fd).st_size, checksum_memory(fd)
        finally:
            os.close(fd)
        state = os.open(os.path.join(directory, snapshots.STATE), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            state_checksum = checksum_of(state)
        finally:
            os.close(state)
        for disk in description.request.disks:
            if disk.writable:
                os.stat(os.path.join(directory, snapshots.disk_file(disk.tag)))
    except OSError as error:
        raise snapshots.damaged(error.filename or path, str(error.strerror)) from None
    expected = description.memory_bytes, (description.used_bytes, description.memory_checksum)
    if (size, found) != expected:
        raise snapshots.damaged(path, "the memory in it is damaged")
    if state_checksum != description.state_checksum:
        raise snapshots.damaged(directory, "the devices' state in it is damaged")


def check_surroundings(then: Surroundings, plan: LaunchPlan) -> None:
    """Look whether a machine of a plan can go on from what was saved then.

    Raises:
        SnapshotError: It cannot, and why.
    """
    now = describe_surroundings(plan)
    for what, before, after in (
        ("host's kernel", then.host, now.host),
        ("QEMU", then.qemu, now.qemu),
        ("guest's kernel", then.kernel, now.kernel),
        ("counter's frequency", f"{then.counter_khz} kHz", f"{now.counter_khz} kHz"),
    ):
        if before != after:
            raise SnapshotError(
                f"the snapshot was made with another {what}: {before}, and here is {after}",
                hint="A machine goes on only where everything below it is the same.",
            )
    if then.words != now.words:
        others = [word.decode("utf-8", "replace") for word in then.words if word not in now.words]
        raise SnapshotError(
            "the snapshot was made of another machine than the one that would go on from it"
            + (f": it had {', '.join(others[:4])}" if others else ""),
            hint="The accelerator, or this version of cloche, makes another one.",
        )


def check_host(description: Description) -> None:
    """Look whether what the domain had of the host is still there, and the same.

    Raises:
        ShareError: A shared directory is not.
        SnapshotError: An image is not.
    """
    for known in description.shares:
        reason = _why_other(known)
        if reason:
            raise ShareError(
                f"{known.path} was shared with the domain or copied into it, and {reason}",
                hint="A guest that goes on has files of it open: put it back where it was.",
            )
    for known in description.disks:
        reason = _why_other(known)
        if reason:
            raise SnapshotError(
                f"{known.path} was a disk of the domain, and {reason}",
                hint="A disk that is only read is not copied into a snapshot: put it back as it was.",
            )


def _why_other(known: Known) -> str:
    try:
        now = know(known.path, unchanged=known.changed_ns != 0)
    except OSError as error:
        return f"it cannot be found any more: {error.strerror}"
    if (now.device, now.number) != (known.device, known.number):
        return "something else is there now"
    return "it was changed since" if now.changed_ns != known.changed_ns else ""


def prepare(directory: str, facts: HostFacts, name: str, *, whole: bool) -> tuple[LaunchPlan, Description]:
    """Return the plan of a domain that goes on from a snapshot, and what the snapshot says.

    Args:
        directory: Where it is.
        facts: Of the host today.
        name: What the domain is to be called; empty for nothing.
        whole: Look at all of its content before.

    Raises:
        SnapshotError: It is damaged, or nothing here can go on from it.
        ShareError: What was shared is not there any more.
        ClocheError: The machine cannot be planned.
    """
    description = read(directory)
    if whole:
        check_content(directory, description)
    # Before the machine is planned: its plan would fail for what is missing, and in other words.
    check_host(description)
    plan = plan_machine(directory, Beginning(description.outline, ()), facts, name)
    return complete(plan, description), description


def plan_machine(directory: str, beginning: Beginning, facts: HostFacts, name: str) -> LaunchPlan:
    """Return the plan of a machine that goes on from a snapshot, which need not be there yet.

    Raises:
        SnapshotError: Nothing here can go on from it.
        ClocheError: The machine cannot be planned.
    """
    from cloche.domain.prepare import choose_kernel
    from cloche.drivers.registry import find_driver
    from cloche.model.plan import OpenFile, Template

    outline = beginning.outline
    request = outline.request
    disks = tuple(
        disk._replace(
            path=os.path.join(directory, snapshots.disk_file(disk.tag)),
            copied=True,
            empty=False,
            undo="",
            undo_bytes=0,
        )
        if disk.writable
        else disk
        for disk in request.disks
    )
    driver = find_driver(request.driver)
    kernel = choose_kernel(outline.surroundings.kernel, facts.tools.agent)
    template = Template(
        directory=directory,
        memory=os.path.join(directory, snapshots.MEMORY),
        state=OpenFile(os.path.join(directory, snapshots.STATE), False, 0),
        checksum=0,
        target=b"",
        devices=outline.devices,
        balloon=outline.balloon,
        is_whole=False,
        extents=beginning.extents,
    )
    # What was a profile's is a copy here, and no profile's any more.
    plan = driver.plan(request._replace(disks=disks, name=name, layer=None), facts, kernel, template)
    check_surroundings(outline.surroundings, plan)
    return plan._replace(name=name, timeout_s=None)


def complete(plan: LaunchPlan, description: Description) -> LaunchPlan:
    """Return the plan of such a machine with what is known when the snapshot is there."""
    from cloche.plan.guest import build_identity_steps

    assert plan.template is not None
    digits = (os.urandom(16).hex().encode() for _ in range(2))
    steps = build_identity_steps(*digits, go_on=not description.paused)
    return plan._replace(
        command=description.command,
        setup=(*plan.setup, *steps),
        template=plan.template._replace(checksum=description.state_checksum, is_whole=True),
    )
