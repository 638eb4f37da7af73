"""From the words of a run to a request (layer 5)."""

from __future__ import annotations

import os

from cloche.errors import UsageError
from cloche.model.request import RunRequest
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cloche.model.request import Disk, GuestMount, Include, Share


def build_request(given: Mapping[str, object], program: Sequence[str]) -> RunRequest:
    """Turn what was said into a request; looks at the directories that are to be shared.

    Args:
        given: What the options of a run (``model.options``) were given, on the command line, in files or in a call.
        program: The program and its arguments.
    """
    shares: tuple[Share, ...] = ()
    includes: tuple[Include, ...] = ()
    if given.keys() & {"share", "here", "include", "include_list"}:
        from cloche.host.paths import resolve_include, resolve_share, share_here

        shares = tuple(resolve_share(word) for word in given.get("share", ()))  # type: ignore[attr-defined]
        if given.get("here"):
            shares = (*shares, share_here())
        words = list(given.get("include", ()))  # type: ignore[call-overload]
        if "include_list" in given:
            from cloche.host.images import read_list

            words += [word for path in given["include_list"] for word in read_list(path)]  # type: ignore[attr-defined]
        includes = tuple(resolve_include(word) for word in words)
    disks: tuple[Disk, ...] = ()
    mounts: tuple[GuestMount, ...] = ()
    if given.keys() & {"disk", "mount"}:
        from cloche.host.images import resolve_disk, resolve_mounts

        disks = tuple(resolve_disk(word) for word in given.get("disk", ()))  # type: ignore[attr-defined]
        more, images, mounts = resolve_mounts(given.get("mount", ()))  # type: ignore[arg-type]
        shares, disks = (*shares, *more), (*disks, *images)
    root = None
    if "root" in given:
        from cloche.domain.archives import find_root

        root, images = find_root(str(given["root"]))
        disks = (*disks, *images)
    network = None
    if "net" in given:
        from cloche.host.networks import resolve_network

        network = resolve_network(given["net"])  # type: ignore[arg-type]
    vsock = ""
    if "vsock" in given:
        from cloche.host.networks import resolve_door

        vsock = resolve_door(str(given["vsock"]))
    if "name" in given:
        from cloche.host.names import check_name

        check_name(str(given["name"]))
    plain = {
        key: given[key]
        for key in (
            "driver",
            "workdir",
            "user",
            "privileged",
            "cpus",
            "pids",
            "kernel",
            "accelerator",
            "boot_log",
            "agent_log",
            "shell_on_failure",
            "strace",
            "share_later",
            "devices",
            "hwrng",
            "cold",
            "name",
        )
        if key in given
    }
    request = RunRequest(
        argv=tuple(os.fsencode(word) for word in program),
        shares=shares,
        includes=includes,
        disks=disks,
        mounts=mounts,
        root=root,
        network=network,
        vsock=vsock,
        env=tuple(read_variable(word) for word in given.get("env", ())),  # type: ignore[attr-defined]
        memory_mib=given.get("memory"),  # type: ignore[arg-type]
        timeout_s=given.get("timeout"),  # type: ignore[arg-type]
        boot_timeout_s=given.get("boot_timeout"),  # type: ignore[arg-type]
        insecure=tuple(dict.fromkeys(given.get("insecure_no_jail", ()))),  # type: ignore[call-overload]
        **plain,  # type: ignore[arg-type]
    )
    if given.get("profile"):
        from cloche.domain.profiled import with_profile

        starts, room = given.get("kept_starts"), given.get("kept_room")
        request = with_profile(
            request,
            str(given["profile"]),
            kept_starts=starts,  # type: ignore[arg-type]
            kept_mib=room,  # type: ignore[arg-type]
        )
    return request


def read_variable(word: str) -> tuple[bytes, bytes]:
    """Read ``NAME=VALUE``, or ``NAME`` for what it is on the host.

    Raises:
        UsageError: It names nothing.
    """
    name, equals, value = os.fsencode(word).partition(b"=")
    if not name:
        raise UsageError(
            f"--env {word!r} names no variable", hint="Write NAME=VALUE, or NAME to pass on the host's."
        )
    if equals:
        return name, value
    passed = os.environb.get(name)
    if passed is None:
        raise UsageError(f"--env {word}: the variable is not set here", hint=f"Write {word}=VALUE.")
    return name, passed
