"""``run`` and ``Sandbox`` (layer 5b)."""

from __future__ import annotations

import os
import warnings
import weakref

from cloche.api.loop import Loop
from cloche.api.machine import Machine
from cloche.api.popen import Popen
from cloche.api.programs import RUN_OPTIONS
from cloche.api.request import sandbox_request, words
from cloche.domain.prepare import prepare_plan
from cloche.errors import DomainError, UsageError
from cloche.host.facts import collect_facts
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Any, Self

    from cloche.api.domain import Domain
    from cloche.api.programs import CompletedProcess, Wanted, Word
    from cloche.model.facts import HostFacts


def run(
    args: Sequence[Word], *, timeout: float | None = None, sandbox: Sandbox | None = None, **options: Any
) -> CompletedProcess[Any]:
    """Run a program in a machine of its own and return when it has ended, like ``subprocess.run``.

    Args:
        args: The program and its arguments. A single string is refused: there is no shell.
        timeout: Seconds for the program itself; the start of the machine is not counted.
        sandbox: Run it there instead of in a fresh machine.
        **options: Those of ``Sandbox`` and of ``Sandbox.run`` (``input``, ``capture_output``, ``text``, ``check`` ...).

    Raises:
        CalledProcessError: ``check`` was given and the status is not 0.
        TimeoutExpired: The time has passed; the program was killed.
        ClocheError: The machine or the program could not be started.
    """
    running = {name: options.pop(name) for name in RUN_OPTIONS if name in options}
    if sandbox is not None:
        if options:
            raise UsageError(f"{', '.join(options)} cannot be given together with sandbox")
        return sandbox.run(args, timeout=timeout, **running)
    with Sandbox(**options) as fresh:
        return fresh.run(args, timeout=timeout, **running)


class Sandbox(Machine):
    """A machine in which programs are run. A context manager: leaving it ends the machine and everything in it.

    One that nothing holds any more ends as well, with a ResourceWarning, whatever programs still run in it.

    Args:
        profile: The profile that keeps what is changed, from one machine to the next; None for nothing.
        share: Host directories the guest sees: paths, ``"DIR:rw"``, or ``"DIR:ro:at=PATH"`` as on the command line.
        share_later: Be ready for ``share`` although nothing is shared at the start.
        include: Host files copied into the guest: a mapping of guest path to host path.
        mount: What the guest mounts besides: ``"host-image:FILE,at=PATH"``, ``"ram:at=PATH"`` and others, as on the
            command line.
        root: Another system tree than the host's: ``"DIR"``, ``"TAR"`` or ``"IMAGE[,part=N]"`` as on the command line.
        memory_mib: The most memory it may use, in MiB; None for the default.
        cpus: Virtual CPUs; None for one.
        disks: Its disks, kept in files of the host: ``"TAG=FILE[,format=raw|qcow2][,ro]"``, or new and empty:
            ``"TAG=size:10G"``.
        net: Its network card: ``"user"`` or ``"socket:PATH"`` as on the command line; None for no card.
        hwrng: Whether it has a device that gives random numbers of the host.
        vsock: A path at which programs of the host reach sockets of the guest, as on the command line; None for none.
        devices: Where the work of its devices is done: ``process`` (each apart, the default), ``bundled`` or ``vmm``.
            With the other two a hole in one device is a hole in all.
        driver: ``qemu`` (the default) or ``bwrap``.
        kernel: The guest kernel's name; None lets cloche choose.
        accelerator: ``kvm`` or ``tcg``; None for what was found to work.
        privileged: Run programs as root of the guest.
        boot_timeout_s: Seconds until the guest must answer.
        insecure_no_jail: Parts of the jails that this host cannot have, to be left out: ``seccomp``, ``namespaces``,
            ``ids``.
        settings: Begin with what files of settings of the system and of the user say, as the command line does. Without
            it, what a program does is the same for everybody. An argument that is None says nothing of its own.

    Attributes:
        request: What these arguments ask for.

    Raises:
        UsageError, ShareError, DiskError, NetworkError, ProfileError: What is shared, mounted or connected makes no
            sense, or is not there.
        ClocheError: From ``start`` (and so from ``with``): what the command line would have said.
    """

    def __init__(
        self,
        *,
        profile: str | None = None,
        share: Sequence[Word] = (),
        share_later: bool | None = None,
        include: Mapping[str, Word] | None = None,
        mount: Sequence[Word] = (),
        root: str | None = None,
        memory_mib: int | None = None,
        cpus: int | None = None,
        disks: Sequence[str] = (),
        net: str | None = None,
        hwrng: bool | None = None,
        vsock: str | None = None,
        devices: str | None = None,
        driver: str | None = None,
        kernel: str | None = None,
        accelerator: str | None = None,
        privileged: bool | None = None,
        boot_timeout_s: float | None = None,
        insecure_no_jail: Sequence[str] = (),
        settings: bool = False,
    ) -> None:
        said = {
            "profile": profile,
            "share": words("share", share, "DIR:rw"),
            "share_later": share_later,
            "include": tuple(f"{guest}={os.fsdecode(host)}" for guest, host in (include or {}).items()),
            "memory": memory_mib,
            "cpus": cpus,
            "mount": words("mount", mount, "ram:at=PATH"),
            "root": root,
            "disk": words("disks", disks, "TAG=FILE"),
            "net": net,
            "hwrng": hwrng,
            "vsock": vsock,
            "devices": devices,
            "driver": driver,
            "kernel": kernel,
            "accelerator": accelerator,
            "privileged": privileged,
            "boot_timeout": boot_timeout_s,
            "insecure_no_jail": words("insecure_no_jail", insecure_no_jail, "PART"),
        }
        self.request = sandbox_request(said, settings=settings)
        self._loop: Loop | None = None
        self._finalizer: weakref.finalize[..., Sandbox]
        self._facts: HostFacts

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the machine and return when programs can be run in it.

        Raises:
            ClocheError: It could not be started.
            DomainError: It was started already.
        """
        if self._loop is not None:
            raise DomainError("the sandbox was started already")
        self._facts = facts = collect_facts()
        hold = None
        if self.request.layer is not None:
            from cloche.domain.profiled import take

            self.request, hold = take(self.request)
        try:
            plan = prepare_plan(self.request, facts)
        except BaseException:
            if hold is not None:
                hold.release(is_clean=hold.is_clean)
            raise
        cold = self.request._replace(cold=True)
        # Nothing that the loop holds may hold the sandbox: one that is dropped ends.
        self._loop = Loop(plan, lambda: prepare_plan(cold, facts), hold)
        self._finalizer = weakref.finalize(self, _drop, self._loop)
        # At the host program's end its lifeline is cut, and the machine ends with it: nobody has to wait for that.
        self._finalizer.atexit = False
        try:
            self._loop.open()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the machine. What programs wrote to shares is on the host when this returns. May be called twice."""
        if self._loop is not None:
            self._finalizer.detach()
            self._loop.close()

    @property
    def ident(self) -> str:
        """The name by which others find the domain: ``cloche exec``, ``cloche ps``, ``Domain.find``.

        Raises:
            ClocheError: The sandbox does not run.
        """
        return str(self._require_loop().call(lambda domain: domain.ident))

    def detach(self, *, name: str = "") -> Domain:
        """Let the machine go on as a domain that outlives this program; this sandbox has ended then.

        The domain is a fork of it (``Machine.fork``): memory, files and programs go on, with an identity of its own. Of
        programs that this one has started the input ends, and nobody hears them. It goes on until it is stopped.

        Args:
            name: What the domain is to be called; empty for nothing.

        Raises:
            ClocheError: The machine cannot be saved; the sandbox goes on.
        """
        (domain,) = self.fork(names=(name,) if name else ())
        self.close()
        return domain

    def _popen(self, wanted: Wanted) -> Popen:
        from cloche.plan.guest import build_command, resolve_user, shown_trees

        loop = self._require_loop()
        asked = self.request._replace(
            argv=wanted.argv,
            env=(*self.request.env, *wanted.env),
            workdir=wanted.cwd if wanted.cwd is not None else self.request.workdir,
            user=wanted.user if wanted.user is not None else self.request.user,
            privileged=self.request.privileged and wanted.user is None,
        )
        facts = self._facts
        command = build_command(asked, facts, resolve_user(asked, facts.user), shown_trees(asked))
        return Popen(loop, wanted.words, command, wanted.files, wanted.text)

    def _require_loop(self) -> Loop:
        if self._loop is None:
            raise DomainError(
                "the sandbox was not started", hint="Use it in a `with` statement, or call start()."
            )
        return self._loop


def _drop(loop: Loop) -> None:
    if loop.drop():
        warnings.warn(
            "a cloche.Sandbox was not closed: its machine is ended now", ResourceWarning, stacklevel=2
        )
