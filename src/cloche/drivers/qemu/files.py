"""The file servers of a machine (layer 4, pure): the system tree and the shares."""

from __future__ import annotations

import os

from cloche.drivers.qemu.board import DeviceParts
from cloche.drivers.qemu.jails import device_jail
from cloche.model.jail import AS_IS, Bind, BindFlag, Dir, Proc
from cloche.model.plan import Descriptor, Endpoint, EndpointKind, ProcessPlan, SharingPlan
from cloche.plan.stage import below, build_stage
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.drivers.qemu.board import Board
    from cloche.model.facts import HostFacts
    from cloche.model.jail import Jail, RootOp
    from cloche.model.request import RunRequest

#: Replaced by fresh digits when the plan is carried out, so that equal requests have equal plans.
MACHINE_ID_PLACEHOLDER = "0" * 32

#: The descriptors by which QEMU is connected to the servers.
_SYSTEM_FD, _SHARES_FD = 11, 12
#: The descriptor on which a server listens, and the one on which the supervisor tells it what was taken away.
_SERVER_FD, _ORDERS_FD = 3, 4
_ORDERS = "shares-orders"
_STAGE = b"/stage"
#: What a file server of root's needs to give every file its owner: chown, dac_override, fowner, fsetid, setgid, setuid.
_OWNER_CAPS = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7
#: What one needs that only reads, under an id to which nothing belongs: dac_read_search.
_READER_CAPS = 1 << 2


def plan_system_tree(board: Board, facts: HostFacts, hostname: str) -> DeviceParts:
    """Return the parts of the server that shows the host's own tree, which is cached for ever."""
    stage = build_stage(facts, hostname=hostname, machine_id=MACHINE_ID_PLACEHOLDER)
    as_root = facts.user.uid == 0
    ids = b"host" if as_root else b"squash-root"
    arguments = (b"--cache", b"forever", b"--readonly", b"--ids", ids)
    jail = _server_jail(facts, below(_STAGE, stage), keep_caps=_READER_CAPS if as_root else 0)
    return _server(board, "system", _SYSTEM_FD, _process("system", arguments, jail, facts))


def plan_shares(board: Board, request: RunRequest, facts: HostFacts) -> DeviceParts:
    """Return the parts of the server for what was shared, where changes on the host are seen."""
    ops: list[RootOp] = []
    for index, share in enumerate(request.shares):
        flags = BindFlag.NOSUID | BindFlag.NODEV | BindFlag.RECURSIVE
        if not share.writable:
            flags |= BindFlag.READ_ONLY
        ops.append(Bind(share.source.encode("utf-8", "surrogateescape"), b"%s/%d" % (_STAGE, index), flags))
    for index, include in enumerate(request.includes):
        name = os.path.basename(include.target).encode("utf-8", "surrogateescape")
        source = include.source.encode("utf-8", "surrogateescape")
        flags = BindFlag.NOSUID | BindFlag.NODEV | BindFlag.READ_ONLY | BindFlag.RECURSIVE
        ops.append(Bind(source, b"%s/i%d/%s" % (_STAGE, index, name), flags))
    user = facts.user
    ids = b"host" if user.uid == 0 else b"caller:%d:%d" % (user.uid, user.gid)
    arguments: tuple[bytes, ...] = (b"--cache", b"coherent", b"--ids", ids, b"--orders", b"%d" % _ORDERS_FD)
    writable = _is_writable(request)
    if not writable:
        arguments = (*arguments, b"--readonly")
    jail = _server_jail(facts, tuple(ops))
    if user.uid == 0 and writable:
        # Who may become anybody to give files their owner would become root again: another id holds nothing back.
        jail = jail._replace(uid=AS_IS, gid=AS_IS, keep_caps=_OWNER_CAPS)
    elif user.uid == 0:
        jail = jail._replace(keep_caps=_READER_CAPS)
    process = _process("shares", arguments, jail, facts)
    process = process._replace(descriptors=(*process.descriptors, Descriptor(_ORDERS, "there", _ORDERS_FD)))
    parts = _server(board, "shares", _SHARES_FD, process)
    return parts._replace(endpoints=(*parts.endpoints, Endpoint(_ORDERS, EndpointKind.PAIR)))


def _is_writable(request: RunRequest) -> bool:
    """Whether the guest may change anything of what is shared with it, now or later."""
    return request.share_later or any(share.writable for share in request.shares)


def plan_sharing(request: RunRequest, facts: HostFacts, *, served: bool) -> SharingPlan:
    """Return how shares come and go while the machine runs; not at all unless they are ``served``."""
    sharing = SharingPlan(request.shares, request.includes, facts.user, _is_writable(request))
    return sharing._replace(server="fs-shares", orders=_ORDERS, stage=_STAGE) if served else sharing


def _server_jail(facts: HostFacts, ops: tuple[RootOp, ...], *, keep_caps: int = 0) -> Jail:
    # The server opens files again by /proc/self/fd; the stage lies beside it, so the guest never sees that /proc.
    root = (Dir(_STAGE, 0o755), Proc(b"/proc"), *ops)
    return device_jail(facts, "cloche-fs", root, keep_caps=keep_caps)


def _process(name: str, arguments: tuple[bytes, ...], jail: Jail, facts: HostFacts) -> ProcessPlan:
    return ProcessPlan(
        name=f"fs-{name}",
        argv=(b"cloche-fs", b"--fd", b"%d" % _SERVER_FD, b"--root", _STAGE, *arguments),
        env=(),
        descriptors=(Descriptor(name, "listen", _SERVER_FD),),
        jail=jail,
        executable=facts.tools.fs,
    )


def _server(board: Board, name: str, fd: int, process: ProcessPlan) -> DeviceParts:
    return DeviceParts(
        argv=(
            *("-chardev", f"socket,id={name},fd={fd}"),
            *("-device", f"{board.place('vhost-user-fs')},chardev={name},tag={name},queue-size=512"),
        ),
        endpoints=(Endpoint(name, EndpointKind.LINK),),
        processes=(process,),
        descriptors=(Descriptor(name, "connect", fd),),
    )
