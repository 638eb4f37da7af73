"""Facts about the host that plans are made from (layer 1, pure data; ``cloche.host.facts`` collects them)."""

from __future__ import annotations

from cloche.model.jail import OWN, IdRange
from cloche.record import Record


class PathFact(Record):
    """What a host path is: ``kind`` is ``dir``, ``file`` or ``link`` (then ``target`` holds where it points)."""

    kind: str
    target: str = ""


class User(Record):
    """The person who runs cloche, as the guest shall know them."""

    name: str
    uid: int
    gid: int
    group: str
    home: str
    shell: str
    gecos: str


class Tools(Record):
    """Programs found on the host; an empty string means "not there".

    Attributes:
        qemu_version: (major, minor) of ``qemu``; (0, 0) when there is none.
    """

    qemu: str
    qemu_version: tuple[int, int]
    bwrap: str
    warden: str
    agent: str
    fs: str
    disk: str
    net: str
    rng: str
    vsock: str
    bundle: str
    passt: str = ""


class SkeletonEntry(Record):
    """One entry of the host's /etc/skel: a directory, a file with ``content``, or a link that holds ``content``.

    ``path`` is relative; directories come before what is in them.
    """

    path: bytes
    kind: str
    mode: int
    content: bytes = b""


class HostFacts(Record):
    """Everything a plan may depend on.

    Attributes:
        environment: The caller's environment, as bytes.
        cwd: The caller's working directory, or "/" when it is gone.
        umask: The caller's file mode mask.
        ignored: The signals the caller ignores, bit N - 1 for signal N.
        nice: The caller's niceness, -20 to 19.
        paths: Which of the paths a stage may show exist.
        programs: For a bare program name: the host paths under which ``PATH`` finds it.
        kvm: Whether KVM was tried and works (None: not tried yet).
        nofile_hard: The hard limit of open files.
        skeleton: What a fresh home begins with; None when that is too much to be sent with the plan.
        filters: For each jailed program, the filter of system calls that is put on before its exec; empty when it was
            not built. Of many programs a plan needs two or three, so each is read when it is first asked for.
        ids: Ids that root's domains may take for their processes; None for other callers, or when there are none.
        kvm_group: The group that may use KVM, OWN when everybody may.
        cgroup: The cgroup, a directory, below which the caller may make others with limits; empty when there is none.
        tsc_khz: The frequency of the host's time-stamp counter in kHz; 0 when it is not known or not steady.
    """

    user: User
    cwd: str
    umask: int
    environment: dict[bytes, bytes]
    paths: dict[str, PathFact]
    tools: Tools
    cpus: int
    memory_mib: int
    kvm: bool | None
    nofile_hard: int
    filters: dict[str, bytes]
    skeleton: tuple[SkeletonEntry, ...] | None = None
    tsc_khz: int = 0
    ignored: int = 0
    nice: int = 0
    ids: IdRange | None = None
    kvm_group: int = OWN
    cgroup: str = ""
