"""Machines that wait for the next ``cloche run`` (layer 5b), as ``cloche pool`` keeps them."""

from __future__ import annotations

from cloche.domain import filling
from cloche.errors import ClocheError, HostError
from cloche.host import pool, poolfile, process
from cloche.record import Record


class Waiting(Record):
    """A machine of the pool.

    Attributes:
        ident: Its identity.
        changed: What has changed since it was made, so that nobody gets it; empty for nothing.
        since: When it was ready, in seconds since the epoch.
    """

    ident: str
    changed: str
    since: int


def set_pool(
    keep: int,
    *,
    memory_mib: int | None = None,
    cpus: int | None = None,
    kernel: str | None = None,
    share_later: bool | None = None,
) -> None:
    """Have so many machines of a kind wait, and make them (``cloche pool set``). With 0 the kind is forgotten.

    Args:
        keep: How many.
        memory_mib: The most memory a machine may use, in MiB; None for the default.
        cpus: Virtual CPUs; None for one.
        kernel: The guest kernel's name; None lets cloche choose.
        share_later: Whether they can take shares; None: as the command line does it for this user.

    Raises:
        ClocheError: They cannot be made, or kept.
    """
    words = ["pool", "set", f"--keep={keep}"]
    if memory_mib is not None:
        words.append(f"--memory={memory_mib}M")
    if cpus is not None:
        words.append(f"--cpus={cpus}")
    if kernel is not None:
        words.append(f"--kernel={kernel}")
    if share_later is not None:
        words.append("--share-later" if share_later else "--no-share-later")
    _command(*words)


def fill_pool() -> None:
    """Make the machines that are missing, and end those out of date (``cloche pool fill``).

    Raises:
        ClocheError: One cannot be made.
    """
    _command("pool", "fill")


def list_pool() -> tuple[Waiting, ...]:
    """Return the machines that wait (``cloche pool list``)."""
    ready = [member for member in pool.members() if member.state == pool.READY]
    looked = [(member.ident, filling.look(member)) for member in ready]
    return tuple(Waiting(ident, *seen) for ident, seen in looked if seen is not None)


def clear_pool(*, forget: bool = False) -> int:
    """End the machines that wait, and return how many they were; with ``forget`` none are made any more.

    Raises:
        HostError: What is set cannot be changed.
    """
    if forget:
        try:
            poolfile.write(())
        except OSError as error:
            raise HostError(f"cannot write {pool.settings_path()}: {error.strerror}") from None
    return filling.clear()


def _command(*words: str) -> None:
    """Run a command that makes machines: their supervisors are forks of it, and a host program must not be forked."""
    done = process.run(process.cloche_words(*words))
    if done.status:
        lines = done.stderr.decode("utf-8", "replace").splitlines()
        said = [line.removeprefix("cloche: ") for line in lines if line.startswith("cloche: ")]
        hints = [line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")]
        raise ClocheError(
            said[-1] if said else f"`cloche {' '.join(words)}` failed with status {done.status}",
            hint=hints[-1] if hints else None,
        )
