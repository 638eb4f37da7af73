"""QEMU, taken over: what its jail and its own filter leave of it. It is asked by its monitor to start a program."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING

import pytest

from cloche.drivers.registry import find_driver
from cloche.host.facts import collect_facts
from cloche.host.warden import Failed, Spawned
from cloche.model.jail import AS_IS, JailFlag, SpawnSpec
from support.plans import KERNEL, request
from support.wardens import PATIENCE_S, ROLES, Role, domain, make_role, next_events

if TYPE_CHECKING:
    from cloche.model.plan import ProcessPlan
    from support.users import OrdinaryUser

PARTS = ("filters", "sandbox", "root")


@pytest.fixture(params=ROLES)
def role(request: pytest.FixtureRequest, ordinary: OrdinaryUser) -> Role:
    """Provide root and an ordinary user, one after the other."""
    return make_role(request.param, ordinary)


def real_vmm() -> ProcessPlan:
    """Return QEMU as it would be started for whoever this is."""
    facts = collect_facts()
    # It boots nothing here; there only has to be something to bind.
    kernel = KERNEL._replace(path="/usr/bin/true", initrd="/usr/bin/true")
    plan = find_driver("qemu").plan(request(), facts, kernel)
    return next(process for process in plan.processes if process.name == "vmm")


def vmm_of(vmm: ProcessPlan, kept: frozenset[str]) -> SpawnSpec:
    """Return an empty machine in QEMU's jail, without some of its parts; descriptor 3 is the monitor."""
    # Under an id of its own a program of root's could not write down that it ran.
    jail = vmm.jail._replace(uid=AS_IS, gid=AS_IS)
    if "filters" not in kept:
        jail = jail._replace(seccomp=b"")
    if "root" not in kept:
        jail = jail._replace(root=(), flags=jail.flags | JailFlag.KEEP_ROOT)
    place = vmm.argv.index(b"-sandbox")
    sandbox = vmm.argv[place : place + 2] if "sandbox" in kept else ()
    monitor = (b"-chardev", b"socket,id=monitor,fd=3", b"-mon", b"chardev=monitor,mode=control")
    empty = (b"-nodefaults", b"-no-user-config", b"-display", b"none", b"-machine", b"none", b"-S")
    argv = (vmm.argv[0], *empty, *sandbox, *monitor)
    return SpawnSpec(id=1, name=b"vmm", argv=argv, env=vmm.env, jail=jail, fds=(2, 3))


def start_a_program(role: Role, spec: SpawnSpec, command: str) -> None:
    """Have QEMU pipe a machine's state into a shell command; return when it has done so, failed, or died."""
    ours, theirs = socket.socketpair()
    with domain(role.warden) as warden, ours, theirs, open(os.devnull, "wb") as null:
        warden.send_spawn(spec, (null.fileno(), theirs.fileno()))
        theirs.close()
        event = next_events(warden)[0]
        assert not isinstance(event, Failed), event
        assert isinstance(event, Spawned)
        os.close(event.pidfd)
        ours.settimeout(PATIENCE_S)
        with ours.makefile("rw") as monitor:
            assert "QMP" in json.loads(monitor.readline())

            def ask(execute: str, **arguments: str) -> dict[str, dict[str, str]]:
                monitor.write(json.dumps({"execute": execute, "arguments": arguments}) + "\n")
                monitor.flush()
                while "event" in (answer := json.loads(monitor.readline() or '{"error": {}}')):
                    pass
                return answer  # type: ignore[no-any-return]

            ask("qmp_capabilities")
            answer = ask("migrate", uri=f"exec:{command}")
            while "error" not in answer:
                answer = ask("query-migrate")
                if answer.get("return", {}).get("status") in {"failed", "completed"}:
                    return


def test_no_program_is_started(role: Role) -> None:
    """The real jail lets QEMU start no program, nor does each part of it alone; without them all it starts one."""

    @role.run
    def _() -> None:
        vmm = real_vmm()
        with role.directory() as directory:
            proof = directory / "proof"
            command = f"cat >{proof}"
            for kept in (frozenset(PARTS), *(frozenset({part}) for part in PARTS)):
                start_a_program(role, vmm_of(vmm, kept), command)
                assert not proof.exists(), kept
            start_a_program(role, vmm_of(vmm, frozenset()), command)
            assert proof.exists()


def test_qemus_filters_are_two(role: Role) -> None:
    """QEMU's own filter comes on top of ours, and execveat, which its own does not know, is not in ours."""

    @role.run
    def _() -> None:
        vmm = real_vmm()
        assert b"spawn=deny" in vmm.argv[vmm.argv.index(b"-sandbox") + 1]
        number, allowed = 322, []
        for at in range(0, len(vmm.jail.seccomp), 8):
            instruction = vmm.jail.seccomp[at : at + 8]
            # A jump if the number is that of execveat.
            if instruction[:2] == b"\x15\x00" and int.from_bytes(instruction[4:], "little") == number:
                allowed.append(at)
        assert allowed == []
