"""The request that asks what a running domain is (layer 5)."""

from __future__ import annotations

from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.domain.control.fields import U32
    from cloche.domain.launcher import Launcher
    from cloche.errors import ClocheError

#: As much of a program's words as is told, in bytes.
_TOLD = 4096


class Ask(Record):
    """What are you?"""

    def serve(
        self,
        launcher: Launcher,
        fds: list[int],
        answer: Callable[[Status], None],
        fail: Callable[[ClocheError], None],
    ) -> None:
        """Carry it out."""
        del fds, fail
        plan = launcher.plan
        machine = plan.machine
        answer(
            Status(
                program=() if launcher.is_remote else _beginning(plan.command.argv),
                driver=plan.driver,
                isolation=plan.isolation,
                accelerator=machine.accelerator if machine else "",
                memory_mib=machine.memory_mib if machine else 0,
                cpus=machine.cpus if machine else 0,
                shares=len(launcher.sharing.shares),
                takes_shares=launcher.sharing.is_possible,
            )
        )


def _beginning(argv: tuple[bytes, ...]) -> tuple[bytes, ...]:
    left, words = _TOLD, []
    for word in argv:
        words.append(word[:left])
        left -= len(word)
        if left <= 0:
            break
    return tuple(words)


class Status(Record):
    """What a domain is.

    Attributes:
        program: Its program and arguments, cut after some length; empty for a sandbox of the API, which runs many.
        accelerator: What runs the guest's instructions; empty where there is no machine.
        memory_mib: The most memory the machine may use, in MiB; 0 where there is no machine.
        shares: How many directories are shared with it.
        takes_shares: Whether more can be.
    """

    program: tuple[bytes, ...]
    driver: str
    isolation: str
    accelerator: str
    memory_mib: U32
    cpus: U32
    shares: U32
    takes_shares: bool
