"""``Profile`` (layer 5b): what keeps the changes of one run for the next, and what is changed in it."""

from __future__ import annotations

import os

from cloche.domain import profile_verbs
from cloche.errors import ProfileError, UsageError
from cloche.host import profiles
from cloche.host.facts import collect_facts
from cloche.host.profile_lock import Hold
from cloche.host.text import escape_untrusted
from cloche.model.profile import CEILING_BYTES, TAG, Change
from cloche.model.request import Disk, Layer
from cloche.plan.profile_scripts import DIFF, GROW, RESET, parse_changes
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.model.profile import Entry


class Profile:
    """A profile of the caller's, by its name. It holds nothing open.

    Every method raises a ``ProfileError`` when there is no such profile, or somebody uses it who is in the way.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"Profile({self.name!r})"

    @classmethod
    def new(cls, name: str, size_bytes: int = CEILING_BYTES) -> Profile:
        """Make a profile; nothing is in it yet.

        Args:
            name: What it is called.
            size_bytes: How large its disk may become.

        Raises:
            UsageError: It cannot be a name, or no disk has that size.
            ProfileError: There is one of that name, or no room.
        """
        profiles.new(name, size_bytes)
        return cls(name)

    @classmethod
    def list(cls) -> tuple[Profile, ...]:
        """Return all of them."""
        return tuple(cls(name) for name in profiles.names())

    def look(self) -> Entry:
        """Return its sizes, its state and the domain that has it."""
        return profile_verbs.look(self.name)

    def delete(self) -> None:
        """Delete it with all that is in it."""
        profile_verbs.delete(self.name)

    def rename(self, name: str) -> None:
        """Call it something else."""
        profile_verbs.rename(self.name, name)
        self.name = name

    def clone(self, name: str, progress: Callable[[int, int], None] | None = None) -> Profile:
        """Make a copy of it; ``progress`` is called with bytes done, and of how many.

        A domain that runs with it waits wherever it writes to the disk, until that is copied.
        """
        ident = profile_verbs.user_of(self.name)
        if not ident:
            profile_verbs.clone(self.name, name, progress)
            return Profile(name)
        from cloche.api.profile_live import still

        profile_verbs.check_free(name)
        with still(self.name, ident) as go_on:
            profile_verbs.copy(self.name, name, progress, is_clean=True, copied=go_on)
        return Profile(name)

    def lock(self) -> None:
        """Keep it from being started and changed."""
        profile_verbs.lock(self.name)

    def unlock(self) -> None:
        """Let it be used again; also where another host seemed to use it, and does not."""
        profile_verbs.unlock(self.name)

    def diff(self, path: str = "/") -> tuple[Change, ...]:
        """Return what it has added to the host's files, changed and deleted, below ``path``.

        A guest of its own looks, which has the disk read-only; or the guest itself that runs with it.

        Raises:
            UsageError: The path is not absolute.
            ProfileError: The guest cannot read the disk, or what it says makes no sense.
        """
        path = _plain(path)
        ident = profile_verbs.user_of(self.name)
        if ident:
            from cloche.api import profile_live

            said = profile_live.diff(self.name, ident, path)
        else:
            said = self._ask(DIFF, path, writable=False)
        try:
            return parse_changes(said)
        except ValueError:
            raise ProfileError(f"what a guest says of the profile {self.name} makes no sense") from None

    def reset(self, path: str | None = None) -> None:
        """Take back what was changed at ``path`` and below; without one everything.

        Raises:
            UsageError: The path is not absolute.
            ProfileError: Nothing was changed there.
        """
        if path is None:
            profile_verbs.reset(self.name)
        else:
            self._ask(RESET, _plain(path), writable=True, kept=b"reset")

    def resize(self, size_bytes: int) -> None:
        """Let its disk become larger, also while a domain runs with it.

        Raises:
            UsageError: It would become smaller, or larger than a disk can be.
        """
        ident = profile_verbs.user_of(self.name)
        if ident:
            from cloche.api import profile_live

            profile_live.grow(self.name, ident, size_bytes)
            return
        profile_verbs.grow(self.name, size_bytes)
        self._ask(GROW, "/", writable=True, kept=b"resize")

    def _ask(self, script: str, path: str, *, writable: bool, kept: bytes = b"") -> bytes:
        """Have a guest do something with the disk, and return what it writes.

        What is ``kept`` can be taken back under this name, as what a start does (``cloche profile revert``).
        """
        from cloche.api.sandbox import Sandbox

        # What only looks may look at one that its owner has locked.
        hold = Hold.take(self.name, sealed=not writable)
        is_clean = hold.is_clean
        try:
            if not is_clean:
                raise ProfileError(
                    f"the profile {self.name} was not closed cleanly, and is checked at its next start",
                    hint=f"Start it once: cloche -p {self.name} true",
                )
            if writable:
                hold.begin(())
            image = profiles.image(self.name)
            disk = Disk(TAG, image, writable=writable, most_bytes=os.stat(image).st_size)
            if kept:
                layer = Layer(self.name, image)
                begun = hold.keep(layer.kept_starts, layer.kept_bytes, (b"cloche", b"profile", kept))
                if begun is not None:
                    disk = disk._replace(undo=begun.path, undo_bytes=begun.most_bytes)
            box = Sandbox(privileged=True)
            box.request = box.request._replace(disks=(disk,))
            with box:
                if writable:
                    hold.began(box.ident)
                    hold.secured()
                done = box.run(
                    ["/usr/bin/python3", "-I", "-S", "-c", script, path, collect_facts().user.home],
                    capture_output=True,
                    timeout=_PATIENCE_S,
                )
            is_clean = not writable or done.returncode in (0, _NOTHING)
        finally:
            hold.release(is_clean=is_clean)
        if done.returncode == _NOTHING:
            raise ProfileError(
                f"nothing was changed at {path} in the profile {self.name}",
                hint=f"`cloche profile diff {self.name}` lists what was.",
            )
        if done.returncode:
            said = [escape_untrusted(line, 200) for line in done.stderr.splitlines()[-4:]]
            raise ProfileError(
                f"a guest could not do it with the disk of the profile {self.name}", detail=tuple(said)
            )
        return bytes(done.stdout)


#: The script's status when there is nothing at the path.
_NOTHING = 3
_PATIENCE_S = 3600.0


def _plain(path: str) -> str:
    if not path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise UsageError(f"{path!r} is no absolute path without ..", hint="Write it as the guest sees it.")
    return os.path.normpath(path).replace("//", "/")
