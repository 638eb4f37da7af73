"""The shares of a running domain (layer 5): added and taken away, one after the other.

To add one, the warden shows the directory in the tree of the file server, then the agent mounts it at its place. To
take one away goes the other way round, and the file server is told at the end: what it holds of the share, and so
what the guest still knows of it, is let go. A step that fails is followed by what undoes those before it. Nothing
here waits: every step is answered from the reactor.
"""

from __future__ import annotations

import errno
import os
import stat
from functools import partial

from cloche.domain.orders import Orders
from cloche.errors import ClocheError, DomainError, ShareError
from cloche.host.text import describe_errno, escape_untrusted
from cloche.model.jail import BindFlag
from cloche.model.request import Share
from cloche.plan.places import check_places
from cloche.plan.sharing import build_add_steps, build_remove_steps, build_undo_steps
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.domain.launcher import Launcher
    from cloche.host.warden import Done
    from cloche.model.guest import Step

    Fail = Callable[[ClocheError], None]

#: How long the guest may take for one step, in seconds. It may be hostile, and need not answer at all.
_GUEST_PATIENCE_S = 40.0


class Shared(Record):
    """A share and its number in the stage; ``added`` while the domain ran."""

    number: int
    share: Share
    added: bool


class GuestAnswer(Record):
    """What the guest says to a list of steps: ``errno`` 0 when all are done, else which one failed."""

    errno: int
    what: bytes = b""
    step: int = 0

    def reason(self) -> str:
        """Return a clause, made safe to show."""
        return f"{escape_untrusted(self.what, 200)}: {describe_errno(self.errno)}"


class Sharing:
    """The shares of one domain.

    Attributes:
        shares: What is shared now, in the order in which it was.
    """

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._plan = launcher.plan.sharing
        self.shares = [
            Shared(number, share, False)
            for number, share in zip(self._plan.numbers, self._plan.shares, strict=True)
        ]
        self._next = max(self._plan.numbers, default=-1) + 1
        self._orders: Orders | None = None
        self._waiting: list[Callable[[], None]] = []
        self._busy = False

    @property
    def is_possible(self) -> bool:
        """Whether shares can come and go."""
        return bool(self._plan.server)

    def add(self, source: int, target: str, writable: bool, done: Callable[[], None], fail: Fail) -> None:
        """Share the directory behind the descriptor ``source`` at ``target`` in the guest.

        ``done`` or ``fail`` is called once; the descriptor must stay open until then.
        """
        self.in_turn(partial(self._add, source, target, writable), done, fail)

    def remove(self, place: str, forced: bool, done: Callable[[], None], fail: Fail) -> None:
        """Take away what is shared at ``place`` in the guest, or from there on the host.

        Unless ``forced`` nothing is changed while somebody in the guest uses it.
        """
        self.in_turn(partial(self._remove, place, forced), done, fail)

    def close(self) -> None:
        """Let go of what it has. What is under way is not answered any more."""
        self._waiting.clear()
        if self._orders is not None:
            self._orders.close()

    def moved(self) -> None:
        """Note that the domain has another machine now, with the same shares."""
        if self._orders is not None:
            self._orders.close()
            self._orders = None

    # One after the other

    def in_turn(
        self, work: Callable[[Callable[[], None], Fail], None], done: Callable[[], None], fail: Fail
    ) -> None:
        """Do a piece of work that nothing may change the shares meanwhile; it calls the one or the other at its end."""

        def begin() -> None:
            self._busy = True
            try:
                work(partial(over, done), lambda error: over(partial(fail, error)))
            except ClocheError as error:
                over(partial(fail, error))

        def over(answer: Callable[[], None]) -> None:
            self._busy = False
            if self._waiting:
                # Not from here: a hundred requests in a row must not stand on each other's shoulders.
                self._launcher.reactor.call_soon(self._waiting.pop(0))
                self._busy = True
            answer()

        if self._busy:
            self._waiting.append(begin)
        else:
            begin()

    def _require_server(self) -> int:
        if not self.is_possible:
            if self._launcher.plan.driver != "qemu":
                raise ShareError(
                    f"the {self._launcher.plan.driver} driver cannot change what is shared while a domain runs",
                    hint="The qemu driver can; leave out --driver.",
                )
            raise ShareError(
                "this domain was started without shares and has nothing that could serve one",
                hint="Start it with --share-later, which gets it ready for this, or with a share.",
            )
        return self._launcher.machine.number_of(self._plan.server)

    def _place(self, number: int) -> bytes:
        return b"%s/%d" % (self._plan.stage, number)

    # Adding

    def _add(self, source: int, target: str, writable: bool, done: Callable[[], None], fail: Fail) -> None:
        server = self._require_server()
        if not stat.S_ISDIR(os.fstat(source).st_mode):
            raise ShareError("what is to be shared is not a directory")
        if writable and not self._plan.writable:
            raise ShareError(
                "this domain was started with nothing writable, and its file server cannot write",
                hint="Start it with --share-later or a writable share, or share this one read-only.",
            )
        share = Share(os.readlink(f"/proc/self/fd/{source}"), target, writable)
        others = tuple(one.share for one in self.shares)
        request = self._launcher.plan.request
        mounts = request.mounts if request else ()
        if request and request.vsock:
            from cloche.plan.sockets import check_sockets

            check_sockets(request.vsock, (share,))
        check_places((*others, share), self._plan.includes, mounts)
        number = self._next
        self._next += 1
        steps = build_add_steps(number, share, self._plan.user, (*others, *mounts))
        flags = BindFlag.NOSUID | BindFlag.NODEV | BindFlag.RECURSIVE
        if not writable:
            flags |= BindFlag.READ_ONLY

        def mounted(event: Done) -> None:
            if event.errno:
                # How far it has come is not known of one that was killed.
                self._take_out(number, lambda _: fail(_not_mounted(share.source, event)))
                return
            self.ask_guest(steps, answered)

        def answered(answer: GuestAnswer) -> None:
            if answer.errno == 0:
                self.shares.append(Shared(number, share, True))
                done()
                return
            error = ShareError(
                f"{share.source} cannot be put at {target} in the guest: {answer.reason()}",
                hint="Choose another place with :at=PATH, or see what the guest does.",
            )
            for undo in build_undo_steps(steps, answer.step):
                # Nobody waits for a guest that may not answer; it does them in order, if it does them.
                self._launcher.ask_guest(undo, False, _ignore)
            self._take_out(number, lambda _: fail(error))

        self._launcher.mount(server, self._place(number), flags, source, mounted)

    # Taking away

    def _find(self, place: str) -> Shared:
        found = [one for one in self.shares if one.share.target == place]
        found = found or [one for one in self.shares if one.share.source == place]
        if len(found) == 1:
            return found[0]
        if found:
            raise ShareError(
                f"{place} is shared {len(found)} times",
                hint=f"Name a place in the guest: {', '.join(one.share.target for one in found)}.",
            )
        shared = ", ".join(one.share.target for one in self.shares)
        raise ShareError(
            f"{place} is not shared", hint=f"Shared are {shared}." if shared else "Nothing is shared with it."
        )

    def _remove(self, place: str, forced: bool, done: Callable[[], None], fail: Fail) -> None:
        self._require_server()
        one = self._find(place)
        target = os.fsencode(one.share.target)

        def unmounted(answer: GuestAnswer) -> None:
            # Root of the guest can have taken it away before.
            if answer.errno in (0, errno.EINVAL, errno.ENOENT) or forced:
                self._take_out(one.number, taken_out)
            elif answer.errno == errno.EBUSY:
                fail(
                    ShareError(
                        f"{one.share.target} is in use in the guest: a program has a file of it open or stands in it",
                        hint="--force takes it away all the same: what is open then fails.",
                    )
                )
            else:
                fail(
                    ShareError(
                        f"{one.share.target} cannot be taken away in the guest: {answer.reason()}",
                        hint="--force takes it away whatever the guest says.",
                    )
                )

        def taken_out(error: ClocheError | None) -> None:
            if error is not None:
                fail(error)
                return
            self.shares.remove(one)
            done()

        # What was written is on the host before the way there is gone.
        self.ask_guest(build_remove_steps(target, forced=forced), unmounted, sync=True)

    def _take_out(self, number: int, then: Callable[[ClocheError | None], None]) -> None:
        """Take a share out of the stage, and have the server let go of it: nothing of it can be reached any more."""

        def unmounted(event: Done) -> None:
            if event.errno:
                then(_not_taken_out(f"{event.what}: {os.strerror(event.errno)}"))
                return
            if self._orders is None:
                self._orders = Orders(self._launcher.reactor, self._launcher.take_endpoint(self._plan.orders))
            self._orders.let_go(number, lambda reason: then(_not_taken_out(reason) if reason else None))

        self._launcher.unmount(self._require_server(), self._place(number), unmounted)

    # The guest

    def ask_guest(
        self, steps: tuple[Step, ...], answer: Callable[[GuestAnswer], None], *, sync: bool = False
    ) -> None:
        """Have the guest do something; one that takes too long is answered for."""
        answered = False

        def once(said: GuestAnswer) -> None:
            nonlocal answered
            if not answered:
                answered = True
                timer.cancel()
                answer(said)

        late = GuestAnswer(errno.ETIMEDOUT, b"the guest does not answer", len(steps))
        timer = self._launcher.reactor.call_later(_GUEST_PATIENCE_S, lambda: once(late))
        self._launcher.ask_guest(steps, sync, once)


def _ignore(answer: GuestAnswer) -> None:
    """Take note of nothing."""


def _not_mounted(source: str, event: Done) -> ShareError:
    if event.what == "find the directory" and event.errno in (errno.ENOENT, errno.ESTALE, errno.ENOTDIR):
        return ShareError(
            f"{source} is not what the domain sees there: it was renamed just now, or it lies in a file system that"
            " was mounted after the domain's start and does not reach it",
            hint="Try again; if it stays so, start the domain anew.",
        )
    reason = f"{event.what}: {os.strerror(event.errno)}"
    if event.what == "broken off":
        reason = "the process that was to do it was killed"
    return ShareError(f"{source} cannot be shared: {reason}", hint="`cloche audit` looks at the domain.")


def _not_taken_out(reason: str) -> DomainError:
    return DomainError(
        f"the share is gone from its place, but the file server may still have parts of it: {reason}",
        hint="End the domain to be sure.",
    )
