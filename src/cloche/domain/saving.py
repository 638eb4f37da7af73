"""Saving a machine while it runs (layer 5): it stands still while its devices, its memory and its disks are copied.

::

    DEVICES --> COPYING --> saved (the machine stands still until ``resume``)
       |           |
       +-----------+------> failed (the machine has gone on)

QEMU stops the machine itself, so its state says that it ran, and whoever loads it runs. It writes the devices' state,
that of the file servers included, to an open file. Memory and disks are copied here, a piece in each turn of the loop,
so that the supervisor goes on answering. Whatever fails, the machine goes on.
"""

from __future__ import annotations

import os

from cloche.domain.restore import open_in
from cloche.errors import ClocheError, DomainError, SnapshotError
from cloche.host.sparse import copy_file, copy_memory
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from cloche.domain.machine import Machine
    from cloche.host.reactor import Reactor
    from cloche.model.plan import OpenFile


class Targets(Record):
    """Where a save goes: open files, empty and writable; the caller's.

    Attributes:
        state: What QEMU saves of the devices.
        memory: The guest's memory; -1 if it is not copied (who loads it takes it from the machine itself).
        disks: Copies of what the machine has open.
        thrifty: Leave out pages that are all zero, at the price of looking for them.
    """

    state: int
    memory: int = -1
    disks: tuple[tuple[OpenFile, int], ...] = ()
    thrifty: bool = True


class Saved(Record):
    """What came of it.

    Attributes:
        memory_bytes: The size of the guest's memory.
        used_bytes: How much of it was copied.
        memory_checksum: The CRC-32 of that.
    """

    memory_bytes: int = 0
    used_bytes: int = 0
    memory_checksum: int = 0


class Saving:
    """One save of one machine."""

    def __init__(
        self,
        reactor: Reactor,
        machine: Machine,
        targets: Targets,
        done: Callable[[Saved], None],
        fail: Callable[[ClocheError], None],
    ) -> None:
        """Begin. ``done`` or ``fail`` is called once; after ``done`` the machine stands still.

        Raises:
            DomainError: The machine has no monitor.
        """
        self._reactor = reactor
        self._machine = machine
        self._targets = targets
        self._done = done
        self._fail = fail
        machine.control.save(targets.state, self._stands_still)

    def _stands_still(self, error: ClocheError | None) -> None:
        if error is not None:
            self._give_up(DomainError(f"the domain could not be saved: {error.message}", hint=error.hint))
        else:
            self._copy()

    def _copy(self) -> None:
        steps = self._steps()

        def step() -> None:
            if self._machine.closed:
                return
            try:
                next(steps)
            except StopIteration as stop:
                self._done(stop.value)
            except OSError as error:
                self._give_up(no_room(error))
            else:
                self._reactor.call_soon(step)

        step()

    def _steps(self) -> Generator[None, None, Saved]:
        """Copy memory and disks, a piece at a time; the end has what came of it."""
        targets = self._targets
        saved = Saved()
        if targets.memory >= 0:
            source = open_memory(self._machine)
            try:
                used, checksum = yield from copy_memory(source, targets.memory, thrifty=targets.thrifty)
                saved = Saved(os.fstat(source).st_size, used, checksum)
            finally:
                os.close(source)
        for file, target in targets.disks:
            yield from copy_file(self._machine.files[file], target)
        return saved

    def _give_up(self, error: ClocheError) -> None:
        resume(self._machine, lambda: self._fail(error))


def open_memory(machine: Machine) -> int:
    """Open the file of a guest's memory for reading.

    Raises:
        OSError: The machine was not started, or is gone.
    """
    vmm = machine.open_vmm()
    try:
        return open_in(vmm, machine.plan.memory, os.O_RDONLY)
    finally:
        os.close(vmm)


def resume(machine: Machine, done: Callable[[], None] | None = None) -> None:
    """Let a machine that was saved go on; ``done`` is called when it does, and nothing of the save is open any more.

    A VMM that does not do so has been taken over or ends, and that is heard elsewhere.
    """

    def answered(error: ClocheError | None) -> None:
        del error
        if done is not None:
            done()

    if machine.closed:
        answered(None)
    else:
        machine.control.resume(answered)


def no_room(error: OSError) -> SnapshotError:
    """Return the error for a copy that could not be written."""
    return SnapshotError(
        f"the domain could not be saved: {error.strerror}",
        hint="It goes on. Free some space there, or point XDG_DATA_HOME to another place.",
    )
