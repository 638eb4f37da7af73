"""Filling the pool (layer 5): what is missing is made, what is too much or out of date is ended, one by one."""

from __future__ import annotations

import fcntl
import os
import time

from cloche import log
from cloche.domain.control import claiming, wire
from cloche.domain.control.client import Control
from cloche.errors import ClocheError, DomainError, LaunchError
from cloche.host import pool, poolfile, rundir, xdg
from cloche.host.process import start_cloche
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.host.pool import Member
    from cloche.plan.pool import Setting

#: Somebody fills; somebody else waits for that. Nobody else needs to.
_FILLS, _WAITS = "lock", "queue"
_FAILED = "failed"
#: Nobody tries in the background again so soon after it has failed, in seconds.
_RETRY_S = 600.0
_PATIENCE_S = 5.0


def fill(make: Callable[[Setting], None], *, background: bool = False) -> None:
    """Make what is missing, by ``make``.

    In the ``background`` this returns at once when somebody else is about to do the same.

    Raises:
        ClocheError: One cannot be made.
    """

    def work() -> None:
        # Not before: what is set may have changed while somebody else filled.
        settings = poolfile.read()
        waiting = good_members(settings)
        for setting in settings:
            key = pool.own_key(setting.key)
            for _ in range(setting.keep - sum(member.key == key for member in waiting)):
                make(setting)

    if pool.is_set() or os.path.isdir(pool.home()):
        _alone(work, background=background)


def clear() -> int:
    """End all that wait, those that are being made just now among them; return how many they were."""
    count = 0

    def work() -> None:
        nonlocal count
        count = sum(end(member) for member in pool.members() if member.state == pool.READY)

    # One that is being made may have no entry yet: whoever makes it has the lock.
    if os.path.isdir(pool.home()):
        _alone(work)
    return count


def _alone(work: Callable[[], None], *, background: bool = False) -> None:
    """Do something while nobody else does such a thing; in the ``background`` not if somebody waits for that."""
    directory = xdg.ensure_directory(pool.home())
    queue = lock = -1
    try:
        queue = _lock(directory, _WAITS)
        if background and not _try_lock(queue):
            return
        fcntl.flock(queue, fcntl.LOCK_EX)
        lock = _lock(directory, _FILLS)
        fcntl.flock(lock, fcntl.LOCK_EX)
        # From here on there is news for the next one.
        fcntl.flock(queue, fcntl.LOCK_UN)
        work()
    finally:
        for fd in (queue, lock):
            if fd >= 0:
                os.close(fd)


def note_failure(failed: bool) -> None:
    """Write down whether the pool could not be filled in the background, so that not every run tries it again."""
    path = os.path.join(pool.home(), _FAILED)
    if failed:
        xdg.ensure_directory(pool.home())
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        os.utime(path)
    elif os.path.lexists(path):
        os.unlink(path)


def has_failed_lately() -> bool:
    """Tell whether that was a short time ago."""
    try:
        age_s = time.time() - os.lstat(os.path.join(pool.home(), _FAILED)).st_mtime
    except OSError:
        return False
    return 0 <= age_s < _RETRY_S


def _lock(directory: str, name: str) -> int:
    return os.open(
        os.path.join(directory, name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
    )


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def good_members(settings: tuple[Setting, ...]) -> list[Member]:
    """Return the members that are wanted and up to date; the others of this installation are ended."""
    left = {pool.own_key(setting.key): setting.keep for setting in settings}
    good = []
    mine = pool.own_key("")
    for member in pool.members():
        if member.state == pool.READY and member.key.endswith(mine):
            seen = look(member)
            if seen is None:
                continue
            if seen.changed or left.get(member.key, 0) <= 0:
                end(member)
                continue
            left[member.key] -= 1
            good.append(member)
        else:
            connection = pool.connect(member)
            if connection is not None:
                connection.close()
    return good


def look(member: Member) -> claiming.Seen | None:
    """Ask a member whether it is still what it was made of; None when it is somebody's, or gone."""
    connection = pool.connect(member)
    if connection is None:
        return None
    with Control(member.ident, _PATIENCE_S, connection) as control:
        try:
            return control.ask(claiming.Look(), claiming.Seen)
        except ClocheError as error:
            log.debug(f"a machine of the pool: {error.message}")
            return None


def end(member: Member) -> bool:
    """End a member: it is taken, and then nobody has it. Returns whether it was there to be taken."""
    connection = pool.take(member)
    if connection is None:
        return False
    connection.close()
    rundir.wait_for_end(member.ident)
    return True


def fill_in_background() -> None:
    """Have the pool filled by a process of its own, unless that has failed a short time ago."""
    if has_failed_lately():
        return
    try:
        start_cloche("pool", "fill", "--background")
    except LaunchError as error:
        log.debug(error.message)


def heard(packet: bytes) -> str:
    """Return the identity of the machine that a supervisor says waits now.

    Raises:
        ClocheError: It could not be made, and why.
    """
    from cloche.domain.detached import Begun

    if not packet:
        raise DomainError(
            "the supervisor of a machine of the pool has ended before it was ready",
            hint="Somebody or the kernel (for want of memory?) has ended it.",
        )
    return wire.read_answer(packet, Begun).ident
