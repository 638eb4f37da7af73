"""Giving a running domain another machine that goes on where its machine stood (layer 5).

::

    SAVING --> LOADING --> over: the new machine runs, the old one is ended
       |          |
       +----------+------> failed: the old machine goes on, the new one is ended

The new machine is started beside the old one and filled from it; the old one is ended when the new one runs. Programs
go on, and so do their streams: the channel is cut with the old machine and attached again to the new one.
"""

from __future__ import annotations

import os

from cloche.domain.machine import Machine
from cloche.domain.restore import Restore
from cloche.domain.saving import Saved, Saving, Targets, open_memory, resume
from cloche.errors import ClocheError, DomainError
from cloche.model.plan import OpenFile, Template
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.domain.launcher import Launcher
    from cloche.domain.sharing import GuestAnswer
    from cloche.host.reactor import Timer
    from cloche.model.plan import LaunchPlan

    Fail = Callable[[ClocheError], None]

#: A machine that does not run by then is given up, in seconds.
_PATIENCE_S = 60.0


class Reload:
    """One change of machines. Must be done in turn with changes of shares (``Sharing.in_turn``)."""

    def __init__(
        self,
        launcher: Launcher,
        plan: Callable[[Template], LaunchPlan],
        done: Callable[[], None],
        fail: Fail,
    ) -> None:
        """Begin. ``plan`` makes the new machine's plan; ``done`` or ``fail`` is called once.

        Raises:
            ClocheError: The new machine cannot be planned.
        """
        self._launcher = launcher
        self._old = launcher.machine
        self._done = done
        self._fail = fail
        self._over = False
        self._late: Timer | None = None
        self._new: Machine | None = None
        self._state = os.memfd_create("cloche-state", os.MFD_CLOEXEC)
        try:
            # It has no place in the host's files; what it is called stands in for one.
            old = self._old.plan
            template = Template(
                "", "", OpenFile("/state", False, 0), 0, old.memory, len(old.slots), old.balloon
            )
            self._plan = plan(template)
        except BaseException:
            os.close(self._state)
            raise
        launcher.ask_hold(True, self._save)

    def _save(self) -> None:
        try:
            Saving(self._launcher.reactor, self._old, Targets(self._state), self._saved, self._give_up)
        except ClocheError as error:
            self._give_up(error)

    def _saved(self, saved: Saved) -> None:
        del saved
        try:
            self._start()
        except (ClocheError, OSError) as error:
            self._stop(error if isinstance(error, ClocheError) else DomainError(f"{error.strerror}"))

    def _start(self) -> None:
        launcher = self._launcher
        memory = open_memory(self._old)
        template = self._plan.template
        assert template is not None
        state = os.open(f"/proc/self/fd/{self._state}", os.O_RDONLY | os.O_CLOEXEC)
        work = Restore(template, memory, state)
        work.loaded = self._loaded
        self._new = new = Machine(launcher.reactor, self._plan, launcher.timings, work)
        new.ended = self._stop
        # An image is locked by the open file: the new processes have the same.
        kept = {file: os.dup(fd) for file, fd in self._old.files.items() if file in _files(self._plan)}
        new.prepare(kept)
        self._late = launcher.reactor.call_later(
            _PATIENCE_S, lambda: self._stop(DomainError("the machine does not come up again"))
        )
        launcher.add(new)

    def _loaded(self) -> None:
        """The new machine runs."""
        if self._over or self._new is None:
            return
        self._finish()
        self._launcher.change(self._old, self._new)
        self._launcher.ask_guest(self._plan.setup, False, self._told)

    def _told(self, answer: GuestAnswer) -> None:
        if answer.errno:
            self._fail(DomainError(f"the guest does not take the change: {answer.reason()}"))
        else:
            self._done()

    def _stop(self, error: ClocheError) -> None:
        """The new machine does not come up: the old one goes on."""
        if self._over:
            return
        if self._new is not None:
            self._launcher.end(self._new)
        resume(self._old)
        self._give_up(error)

    def _give_up(self, error: ClocheError) -> None:
        if not self._over:
            self._finish()
            self._launcher.ask_hold(False, _nothing)
            self._fail(
                DomainError(
                    f"the domain goes on as it was: {error.message}", hint=error.hint, detail=error.detail
                )
            )

    def _finish(self) -> None:
        self._over = True
        if self._late is not None:
            self._late.cancel()
        if self._state >= 0:
            os.close(self._state)
            self._state = -1


def _nothing() -> None:
    """Wait for nothing."""


def _files(plan: LaunchPlan) -> set[OpenFile]:
    return {file for process in plan.processes for file in process.files}
