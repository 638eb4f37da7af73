"""Making the disk of a running domain's profile larger (layer 5), as its supervisor does it.

The file grows first, then the disk's process is started anew: what it may write, and what it tells the guest, is
decided when it starts. Nothing of the guest's is lost by that, as nothing is when it dies; it tells QEMU, which tells
the guest (crates/device, ``channel.rs``). The file system is the guest's to grow.
"""

from __future__ import annotations

import os

from cloche.drivers.qemu.disk import grown
from cloche.errors import DomainError, ProfileError
from cloche.host.profiles import check_growth
from cloche.model.profile import TAG
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.domain.machine import Machine

_PROCESS = f"disk-{TAG}"


def grow(machine: Machine, size_bytes: int) -> None:
    """Let the file become larger, and the disk with it.

    Raises:
        UsageError: It would become smaller, or no disk has that size.
        DomainError: The machine has no disk of a profile, or none of its own process.
        ProfileError: The host's file system refuses.
    """
    plan = machine.plan
    process = next((one for one in plan.processes if one.name == _PROCESS), None)
    request = plan.request
    if process is None or request is None or request.layer is None:
        raise DomainError(
            "the domain has no profile whose disk could become larger now",
            hint="End it first: a profile that nobody uses can be resized in any case.",
        )
    fd = machine.files[process.files[0]]
    size_bytes = check_growth(request.layer.name, os.fstat(fd).st_size, size_bytes)
    try:
        os.ftruncate(fd, size_bytes)
    except OSError as error:
        raise ProfileError(
            f"cannot resize the profile {request.layer.name}: {error.strerror}",
            hint="Take a smaller size, or keep profiles on another file system (XDG_DATA_HOME).",
        ) from None
    disk = request.disks[0]._replace(most_bytes=size_bytes)
    processes = tuple(grown(one, disk) if one is process else one for one in plan.processes)
    request = request._replace(disks=(disk, *request.disks[1:]))
    machine.renew(plan._replace(processes=processes, request=request), _PROCESS)
