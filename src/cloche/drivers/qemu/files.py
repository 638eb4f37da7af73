"""The file trees of a machine (layer 4, pure), the system tree and the shares, and the processes that serve them."""

from __future__ import annotations

import os

from cloche.drivers.qemu.board import DeviceParts
from cloche.drivers.qemu.jails import device_jail
from cloche.model.jail import AS_IS, Bind, BindFlag, Dir, Proc
from cloche.model.plan import Descriptor, Endpoint, EndpointKind, ProcessPlan, SharingPlan
from cloche.model.request import RootKind
from cloche.plan.stage import below, build_stage
from cloche.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from cloche.drivers.qemu.board import Board
    from cloche.model.facts import HostFacts
    from cloche.model.jail import RootOp
    from cloche.model.request import RunRequest

#: Replaced by fresh digits when the plan is carried out, so that equal requests have equal plans.
MACHINE_ID_PLACEHOLDER = "0" * 32

#: What every guest is called.
HOSTNAME = "cloche"

#: The descriptors by which QEMU is connected to the servers, in this order.
SOCKET_FDS = (11, 12)
#: The descriptor on which a server listens, and the one on which the supervisor tells it what was taken away.
_SERVER_FD, _ORDERS_FD = 3, 4
_ORDERS = "shares-orders"
#: Where the tree of a server that has only one is in its jail.
STAGE = b"/stage"
#: What a file server of root's needs to give every file its owner: chown, dac_override, fowner, fsetid, setgid, setuid.
_OWNER_CAPS = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7
#: What one needs that only reads, under an id to which nothing belongs: dac_read_search.
_READER_CAPS = 1 << 2


class Tree(Record):
    """A tree of files that a guest gets.

    Attributes:
        name: What the guest mounts it by.
        ops: What it is made of, below its root.
        readonly: Whether the guest can change nothing in it.
        cache: How long the guest believes what it was told of it (crates/fs/src/args.rs).
        ids: How our file server shows owners (crates/fs/src/ids.rs).
        caps: The capabilities that whoever serves it needs.
        as_owner: Whether whoever serves it must do so under its owner's id, root's too.
    """

    name: str
    ops: tuple[RootOp, ...]
    readonly: bool
    cache: bytes
    ids: bytes
    caps: int = 0
    as_owner: bool = False


def build_trees(request: RunRequest, facts: HostFacts, hostname: str) -> tuple[Tree, ...]:
    """Return the trees of a machine: the host's own, and what was shared if anything was."""
    is_root = facts.user.uid == 0
    reader = _READER_CAPS if is_root else 0
    system = _system_tree(request, facts, hostname, reader)
    if not (request.shares or request.includes or request.share_later):
        return system
    ids = b"host" if is_root else b"caller:%d:%d" % (facts.user.uid, facts.user.gid)
    writable = _is_writable(request)
    # Who may become anybody to give files their owner would become root again: another id holds nothing back.
    caps = _OWNER_CAPS if is_root and writable else reader
    shares = Tree(
        "shares",
        _build_shares(request),
        readonly=not writable,
        cache=b"coherent",
        ids=ids,
        caps=caps,
        as_owner=is_root and writable,
    )
    return *system, shares


def _system_tree(request: RunRequest, facts: HostFacts, hostname: str, caps: int) -> tuple[Tree, ...]:
    """Return the system tree; none where the guest mounts it from an image."""
    root = request.root
    if root is not None and root.kind == RootKind.IMAGE:
        return ()
    if root is not None:
        from cloche.plan.roots import build_tree

        stage = build_tree(root.source)
    else:
        stage = build_stage(facts, hostname=hostname, machine_id=MACHINE_ID_PLACEHOLDER)
    ids = b"host" if facts.user.uid == 0 else b"squash-root"
    return (Tree("system", stage, readonly=True, cache=b"forever", ids=ids, caps=caps),)


def _is_writable(request: RunRequest) -> bool:
    """Whether the guest may change anything of what is shared with it, now or later."""
    return request.share_later or any(share.writable for share in request.shares)


def plan_sharing(request: RunRequest, facts: HostFacts, *, served: bool) -> SharingPlan:
    """Return how shares come and go while the machine runs; not at all unless they are ``served``."""
    sharing = SharingPlan(
        request.shares, request.includes, facts.user, _is_writable(request), numbers=share_numbers(request)
    )
    return sharing._replace(server="fs-shares", orders=_ORDERS, stage=STAGE) if served else sharing


def share_numbers(request: RunRequest) -> tuple[int, ...]:
    """Return the number of each share."""
    return request.share_numbers or tuple(range(len(request.shares)))


def _build_shares(request: RunRequest) -> tuple[RootOp, ...]:
    ops: list[RootOp] = []
    for number, share in zip(share_numbers(request), request.shares, strict=True):
        flags = BindFlag.NOSUID | BindFlag.NODEV | BindFlag.RECURSIVE
        if not share.writable:
            flags |= BindFlag.READ_ONLY
        ops.append(Bind(share.source.encode("utf-8", "surrogateescape"), b"/%d" % number, flags))
    for index, include in enumerate(request.includes):
        name = os.path.basename(include.target).encode("utf-8", "surrogateescape")
        source = include.source.encode("utf-8", "surrogateescape")
        flags = BindFlag.NOSUID | BindFlag.NODEV | BindFlag.READ_ONLY | BindFlag.RECURSIVE
        ops.append(Bind(source, b"/i%d/%s" % (index, name), flags))
    return tuple(ops)


def stage_root(tree: Tree, place: bytes) -> tuple[RootOp, ...]:
    """Return what shows a tree at ``place``."""
    return (Dir(place, 0o755), *below(place, tree.ops))


def server_options(tree: Tree, place: bytes) -> tuple[bytes, ...]:
    """Return the options by which our file server serves a tree that is at ``place``."""
    words = [b"--root", place, b"--cache", tree.cache]
    if tree.readonly:
        words.append(b"--readonly")
    return (*words, b"--ids", tree.ids)


def tree_device(board: Board, tree: Tree, fd: int) -> tuple[str, ...]:
    """Return QEMU's words for a tree behind the socket ``fd``."""
    name = tree.name
    return (
        *("-chardev", f"socket,id={name},fd={fd}"),
        *("-device", f"{board.place('vhost-user-fs')},chardev={name},tag={name},queue-size=512"),
    )


def plan_file_server(board: Board, tree: Tree, fd: int, facts: HostFacts) -> DeviceParts:
    """Return the parts of a tree with a process of its own, to which QEMU is connected by ``fd``."""
    name = tree.name
    # The server opens files again by /proc/self/fd; the stage lies beside it, so the guest never sees that /proc.
    root = (Proc(b"/proc"), *stage_root(tree, STAGE))
    jail = device_jail(facts, "cloche-fs", root, keep_caps=tree.caps)
    if tree.as_owner:
        jail = jail._replace(uid=AS_IS, gid=AS_IS)
    orders = (Endpoint(_ORDERS, EndpointKind.PAIR),) if name == "shares" else ()
    words = (b"--orders", b"%d" % _ORDERS_FD) if orders else ()
    process = ProcessPlan(
        name=f"fs-{name}",
        argv=(b"cloche-fs", b"--fd", b"%d" % _SERVER_FD, *server_options(tree, STAGE), *words),
        env=(),
        descriptors=(
            Descriptor(name, "listen", _SERVER_FD),
            *(Descriptor(_ORDERS, "there", _ORDERS_FD) for _ in orders),
        ),
        jail=jail,
        executable=facts.tools.fs,
    )
    return DeviceParts(
        argv=tree_device(board, tree, fd),
        endpoints=(Endpoint(name, EndpointKind.LINK), *orders),
        processes=(process,),
        descriptors=(Descriptor(name, "connect", fd),),
    )
