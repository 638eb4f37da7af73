"""Making a snapshot of a running domain (layer 5): machine, disks and conversation, in a directory.

::

    waiting for its turn --> freezing --> saving --> describing --> going on --> on the disk, named --> over

The guest's programs are frozen before (a paused domain's are since then), so that in a guest which goes on from the
snapshot none runs before that has fresh randomness. The domain stands still while it is saved and described, and goes
on before anything waits for the disk; one that was paused stays so, and one that is to end afterwards stands still
until the snapshot has its name. Until then every failure lets it go on.
"""

from __future__ import annotations

import os
import stat
import time
from functools import partial

from cloche.domain import snapshot
from cloche.domain.adding import current_request, plan_again, require_saveable
from cloche.domain.restore import checksum_of
from cloche.domain.saving import Saved, Saving, Targets, no_room, open_memory, resume
from cloche.domain.states import State
from cloche.errors import ClocheError, DomainError
from cloche.host import snapshots
from cloche.host.sparse import extents
from cloche.model.guest import Clock, Freeze, Thaw
from cloche.model.plan import OpenFile, Template
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.domain.launcher import Launcher
    from cloche.domain.machine import Machine
    from cloche.domain.reload import Fail
    from cloche.domain.sharing import GuestAnswer
    from cloche.guest.channel import ChannelState
    from cloche.model.plan import LaunchPlan


def preserve(
    launcher: Launcher, directory: str, name: str, *, stop: bool, done: Callable[[], None], fail: Fail
) -> None:
    """Save the domain into an empty directory; ``done`` or ``fail`` is called once.

    Args:
        launcher: Whose domain.
        directory: Where; it is locked by whoever has made it.
        name: What the snapshot is called in the end; empty for one that is used at once and thrown away.
        stop: End the domain when it is saved.
        done: Called when everything is on the disk.
        fail: Called when it came to nothing; the domain goes on.

    Raises:
        DomainError: It cannot be saved.
        SnapshotError: The directory is not the caller's.
    """
    require_saveable(launcher)
    snapshots.require_own(directory, stat.S_IFDIR)

    def begin(done: Callable[[], None], fail: Fail) -> None:
        _Preserving(launcher, directory, name, stop=stop, done=done, fail=fail).begin()

    launcher.sharing.in_turn(begin, done, fail)


def write_outline(launcher: Launcher, directory: str, done: Callable[[], None], fail: Fail) -> None:
    """Begin a snapshot for forks: say which machine goes on from it, and make the files that this one has open.

    Args:
        launcher: Whose domain.
        directory: An empty one; it is saved into it afterwards (``preserve``).
        done: Called when they are there.
        fail: Called when they are not.

    Raises:
        DomainError: The domain cannot be saved.
        SnapshotError: The directory is not the caller's.
    """
    require_saveable(launcher)
    snapshots.require_own(directory, stat.S_IFDIR)

    def begin(done: Callable[[], None], fail: Fail) -> None:
        outline = _outline(launcher)
        try:
            size, used = _memory(launcher.machine)
            snapshot.write(directory, snapshot.Beginning(outline, used))
            for name in (snapshots.MEMORY, snapshots.STATE):
                snapshots.write_file(directory, name, b"")
            os.truncate(os.path.join(directory, snapshots.MEMORY), size)
        except OSError as error:
            fail(no_room(error))
        else:
            done()

    launcher.sharing.in_turn(begin, done, fail)


def _memory(machine: Machine) -> tuple[int, tuple[tuple[int, int], ...]]:
    """Return the size of the guest's memory, and which parts of it are in use."""
    memory = open_memory(machine)
    try:
        size = os.fstat(memory).st_size
        return size, tuple(extents(memory, size))
    finally:
        os.close(memory)


def _outline(launcher: Launcher) -> snapshot.Outline:
    """Return which machine would go on from the present one."""
    old = launcher.machine.plan
    request = current_request(launcher)
    template = Template("", "", OpenFile("/state", False, 0), 0, old.memory, len(old.slots), old.balloon)
    plan = plan_again(launcher, request, template)
    return snapshot.Outline(snapshot.describe_surroundings(plan), request, len(plan.slots), plan.balloon)


class _Preserving:
    def __init__(
        self,
        launcher: Launcher,
        directory: str,
        name: str,
        *,
        stop: bool,
        done: Callable[[], None],
        fail: Fail,
    ) -> None:
        self._launcher = launcher
        self._machine = launcher.machine
        self._directory = directory
        self._name = name
        self._stop = stop
        self._done = done
        self._fail = fail
        self._outline: snapshot.Outline
        self._was_paused = False
        self._fds: list[int] = []
        self._left = 1 if stop else 2

    def begin(self) -> None:
        """Begin; raises what keeps it from beginning."""
        self._outline = self._find_outline()
        self._launcher.ask_paused(self._begin, self._fail)

    def _begin(self, is_paused: bool) -> None:
        self._was_paused = is_paused
        if is_paused:
            # A machine that stands still would load as one that does; its programs go on standing still meanwhile.
            self._machine.control.resume(self._woken)
        else:
            self._launcher.sharing.ask_guest((Freeze(),), self._frozen)

    def _find_outline(self) -> snapshot.Outline:
        """Return the one that was written, if it still holds: to plan the machine once more takes longer."""
        if os.path.exists(os.path.join(self._directory, snapshots.OUTLINE)):
            known = snapshot.read_beginning(self._directory).outline
            if known.request == current_request(self._launcher):
                return known
        return _outline(self._launcher)

    def _woken(self, error: ClocheError | None) -> None:
        if error is not None:
            self._failed(error)
        else:
            self._launcher.ask_hold(True, self._save)

    def _frozen(self, answer: GuestAnswer) -> None:
        if answer.errno:
            self._failed(DomainError(f"the domain could not be saved: the guest: {answer.reason()}"))
        else:
            self._launcher.ask_hold(True, self._save)

    def _save(self) -> None:
        try:
            state, memory = self._make(snapshots.STATE), self._make(snapshots.MEMORY)
            disks = tuple(
                (file, self._make(snapshots.disk_file(disk.tag)))
                for disk, file in zip(self._outline.request.disks, _images(self._machine.plan), strict=True)
                if disk.writable
            )
            targets = Targets(state, memory, disks, thrifty=bool(self._name))
            Saving(self._launcher.reactor, self._machine, targets, self._saved, self._failed)
        except (OSError, ClocheError) as error:
            self._failed(no_room(error) if isinstance(error, OSError) else error)

    def _make(self, name: str) -> int:
        path = os.path.join(self._directory, name)
        # With an outline some are there, and open in processes that wait for what is put into them.
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._fds.append(fd)
        return fd

    def _failed(self, error: ClocheError) -> None:
        self._launcher.ask_hold(False, _nothing)
        if self._was_paused:
            self._machine.control.pause(_forget)
        else:
            self._thaw()
        self._close()
        self._fail(error)

    def _thaw(self) -> None:
        # It is done in order, and one that never is was the guest's own fault.
        self._launcher.ask_guest((Clock(), Thaw()), False, _ignore)

    def _go_on(self) -> None:
        # What was saved stands still, and stays so if it did before.
        if self._was_paused:
            self._one_done()
            return
        resume(self._machine, self._one_done)
        self._thaw()

    def _one_done(self) -> None:
        """It goes on, or all is on the disk: whoever has asked hears of both at once, and can unmount the place."""
        self._left -= 1
        if not self._left:
            self._done()

    def _saved(self, saved: Saved) -> None:
        def refused(error: ClocheError) -> None:
            resume(self._machine, lambda: self._failed(error))

        self._launcher.ask_hold(False, _nothing)
        self._launcher.ask_channel(partial(self._describe, saved), refused)

    def _describe(self, saved: Saved, channel: ChannelState) -> None:
        programs = self._launcher.programs
        main = programs.main.number if programs and programs.main and programs.status is None else 0
        outlet = programs.outlet if programs else None
        request = self._outline.request
        try:
            if self._was_paused and programs is not None:
                # Somebody has stopped it: it ran while it was copied.
                programs.domain.life.require(State.PAUSED)
            snapshot.write(
                self._directory,
                snapshot.Description(
                    made=time.time(),
                    surroundings=self._outline.surroundings,
                    request=request,
                    command=self._machine.plan.command,
                    main=main,
                    takes_input=outlet is not None and outlet.takes_input,
                    lasting=programs is None or programs.lasting,
                    paused=self._was_paused,
                    channel=channel,
                    devices=self._outline.devices,
                    balloon=self._outline.balloon,
                    memory_bytes=saved.memory_bytes,
                    used_bytes=saved.used_bytes,
                    memory_checksum=saved.memory_checksum,
                    state_checksum=checksum_of(self._fds[0]),
                    shares=(
                        *(snapshot.know(share.source) for share in request.shares),
                        *(snapshot.know(include.source) for include in request.includes),
                    ),
                    disks=tuple(
                        snapshot.know(disk.path, unchanged=True)
                        for disk in request.disks
                        if not disk.writable
                    ),
                ),
            )
            if not self._stop:
                self._go_on()
            if self._name:
                snapshots.publish(self._directory, self._name)
        except (OSError, ClocheError) as error:
            why = no_room(error) if isinstance(error, OSError) else error
            resume(self._machine, lambda: self._failed(why))
            return
        self._close()
        self._one_done()
        if self._stop:
            name = self._name
            over = DomainError(
                f"the domain was saved as {name} and ended",
                hint=f"`cloche snapshot restore {name}` goes on from there.",
            )
            self._launcher.reactor.call_soon(lambda: self._launcher.abort(over))

    def _close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


def _ignore(answer: GuestAnswer) -> None:
    """Take note of nothing."""


def _nothing() -> None:
    """Wait for nothing."""


def _forget(error: ClocheError | None) -> None:
    """Likewise: a VMM that does not do so ends, and that is heard elsewhere."""


def _images(plan: LaunchPlan) -> list[OpenFile]:
    """Return what the disks of a plan are kept in, in their order; not what they have open besides (an undo log)."""
    return [process.files[0] for process in plan.processes if process.name.startswith("disk-")]
