"""What can be done with a machine that runs (layer 5b): the same for a sandbox of this program and for any domain."""

from __future__ import annotations

import json
import os

from cloche.api.programs import Programs
from cloche.domain.control.client import Control
from cloche.domain.control.devices import add_disk, add_network
from cloche.domain.control.fields import Nothing
from cloche.domain.control.life import AskLife, Kill, LifeNow, Rename
from cloche.domain.control.numbers import Inspect
from cloche.domain.control.shares import add_share, list_shares, remove_share
from cloche.domain.following import pause_domain, resume_domain
from cloche.domain.numbers import Numbers, read_numbers
from cloche.domain.snapshotting import BeginAgain, fork, save
from cloche.errors import DomainError
from cloche.host import rundir
from cloche.host.names import check_name
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from cloche.api.domain import Domain
    from cloche.api.programs import Word
    from cloche.domain.control.share_list import Listed


class Machine(Programs):
    """Such a machine. Every method raises a ``ClocheError`` when it has ended, or cannot do what is asked."""

    @property
    def ident(self) -> str:
        """Its identity, which no other domain ever has.

        Raises:
            ClocheError: It does not run.
        """
        raise NotImplementedError

    @property
    def state(self) -> str:
        """``starting``, ``running``, ``paused``, ``stopping`` or ``ended``."""
        try:
            with Control(self.ident) as control:
                return control.ask(AskLife(), LifeNow).state
        except DomainError:
            return "ended"

    def kill(self, signo: int = 9) -> None:
        """Send a signal to the domain's own program or, where there is none or it has ended, to all others."""
        with Control(self.ident) as control:
            control.ask(Kill(signo), Nothing)

    def pause(self) -> None:
        """Let it stand still: it keeps its memory and takes no CPU."""
        pause_domain(self.ident)

    def resume(self) -> None:
        """Let it go on after ``pause``."""
        resume_domain(self.ident)

    def rename(self, name: str) -> None:
        """Call it something else."""
        with Control(self.ident) as control:
            control.ask(Rename(check_name(name)), Nothing)

    def stats(self) -> Numbers:
        """Return what it uses: CPU time, memory, traffic, and what its guest says of itself."""
        ident = self.ident
        for running in rundir.find_running():
            if running.ident == ident:
                return read_numbers(running)
        raise DomainError(f"the domain {ident} has ended")

    def inspect(self) -> dict[str, Any]:
        """Return state and plan, as ``cloche inspect`` prints them."""
        fd = os.memfd_create("inspect", os.MFD_CLOEXEC)
        with Control(self.ident) as control, open(fd, "r+b") as file:
            control.ask(Inspect(), Nothing, (fd,))
            file.seek(0)
            found: dict[str, Any] = json.load(file)
        return found

    # Shares and devices that come and go

    def share(self, *words: Word) -> tuple[str, ...]:
        """Share more directories while it runs; returns their places in the guest (``cloche share add``).

        Args:
            words: Paths, ``"DIR:rw"``, ``"DIR:ro:at=PATH"``.

        Raises:
            ShareError: One cannot be shared; those before it are. Or the machine was started without any share and
                without ``share_later``.
        """
        ident = self.ident
        return tuple(add_share(ident, os.fsdecode(word)) for word in words)

    def unshare(self, *places: Word, force: bool = False) -> None:
        """Take shared directories away, named by their place in the guest or on the host (``cloche share remove``).

        Raises:
            ShareError: Nothing is shared there, or a program uses it and ``force`` was not given.
        """
        ident = self.ident
        for place in places:
            remove_share(ident, os.fsdecode(place), force=force)

    def shares(self) -> tuple[Listed, ...]:
        """Return what is shared with it: ``target``, ``source``, ``writable`` and ``added`` of each."""
        return list_shares(self.ident)

    def add_disk(self, word: str) -> str:
        """Give it the disk ``TAG=FILE[,format=raw|qcow2][,ro]``; returns its place in the guest (``cloche disk add``).

        Raises:
            DiskError: It cannot have it; it goes on as it was.
        """
        return add_disk(self.ident, word)

    def add_network(self, word: str) -> str:
        """Give it a network card: ``user`` or ``socket:PATH``; returns what the guest calls it (``cloche net add``).

        Raises:
            NetworkError: It cannot have it; it goes on as it was.
        """
        return add_network(self.ident, word)

    # Copies

    def copy_in(self, source: Word, target: Word) -> None:
        """Copy a file or a tree of the host into the guest (``cloche cp SOURCE DOMAIN:TARGET``).

        Args:
            source: What is copied; a link is copied as the link it is.
            target: An absolute path of the guest; in a directory that is there it gets its own name.
        """
        from cloche.api.copying import copy_in

        copy_in(self, os.fsencode(source), os.fsencode(target))

    def copy_out(self, source: Word, target: Word) -> tuple[str, ...]:
        """Copy a file or a tree of the guest to the host (``cloche cp DOMAIN:SOURCE TARGET``).

        Nothing the guest says leads outside of ``target``: devices and links that lead elsewhere are left out.

        Args:
            source: An absolute path of the guest.
            target: Where to; in a directory that is there it gets its own name.

        Returns:
            What was left out, a sentence each.
        """
        from cloche.api.copying import copy_out

        return copy_out(self, os.fsencode(source), os.fsencode(target))

    def snapshot(self, name: str, *, stop: bool = False) -> None:
        """Save memory, devices and disks; the machine goes on, or with ``stop`` ends (``cloche snapshot save``).

        Raises:
            SnapshotError: There is one of that name, or no room; it goes on.
            DomainError: It cannot be saved.
        """
        save(self.ident, name, stop=stop)

    def fork(self, count: int = 1, *, names: Sequence[str] = ()) -> tuple[Domain, ...]:
        """Start ``count`` domains that go on from what this one is now, and outlive this program (``cloche fork``).

        Programs that this program has started go on in them, too, without it: their input ends, and nobody hears them.

        Raises:
            DomainError: It cannot be saved; it goes on.
        """
        from cloche.api.domain import Domain

        return tuple(Domain(ident) for ident, _ in fork(self.ident, count, tuple(names), BeginAgain))
