"""A domain on a profile's disk (layer 5): the disk is taken before the plan is made, and given back at the end."""

from __future__ import annotations

import os

from cloche import log
from cloche.host import profiles
from cloche.host.profile_lock import Hold
from cloche.host.tree_print import fingerprint, has_changed, is_outdated
from cloche.model.request import Layer
from cloche.plan.layers import add_layer
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.model.request import RunRequest

#: What of a request belongs to one program and not to the machine: a program that joins brings its own.
_PROGRAMS_OWN = frozenset(
    (
        "argv",
        "env",
        "workdir",
        "user",
        "privileged",
        "timeout_s",
        "pids",
        "boot_timeout_s",
        "boot_log",
        "agent_log",
        "shell_on_failure",
        "strace",
        "cold",
        "name",
        "layer",
        "share_numbers",
    )
)


def with_profile(
    request: RunRequest, name: str, kept_starts: int | None = None, kept_mib: int | None = None
) -> RunRequest:
    """Return a request whose changes go to the profile of that name; nobody's yet.

    Args:
        request: What is asked for otherwise.
        name: The profile.
        kept_starts: How many starts can be gone back to; None for the usual number.
        kept_mib: How much room that may take, in MiB; None for the usual room.

    Raises:
        UsageError, ProfileError: There is no such profile.
    """
    image = profiles.image(name)
    layer = Layer(name, image)
    if kept_starts is not None:
        layer = layer._replace(kept_starts=kept_starts)
    if kept_mib is not None:
        layer = layer._replace(kept_bytes=kept_mib << 20)
    return add_layer(request, layer, os.stat(image).st_size)


def take(request: RunRequest) -> tuple[RunRequest, Hold | None]:
    """Take the profile of a request, if it has one, for the domain that is about to be planned.

    Returns:
        The request, which says now whether the disk has to be checked; and what is to be released at the end.

    Raises:
        BusyError: Another domain has it.
        ProfileError: It cannot be used.
    """
    if request.layer is None:
        return request, None
    layer = request.layer
    hold = Hold.take(layer.name)
    try:
        if not hold.is_clean:
            profiles.check_room(layer.name)
        hold.begin(machine_words(request))
        layer = layer._replace(needs_check=not hold.is_clean, is_outdated=_look_below(layer))
        begun = hold.keep(layer.kept_starts, layer.kept_bytes, request.argv)
    except BaseException:
        hold.release()
        raise
    if begun is not None:
        disk = request.disks[0]._replace(undo=begun.path, undo_bytes=begun.most_bytes)
        request = request._replace(disks=(disk, *request.disks[1:]))
    return request._replace(layer=layer), hold


def _look_below(layer: Layer) -> bool:
    """Say in a line when the host's system was changed since the profile was last started.

    Returns:
        Whether the profile may hold caches of the earlier one.
    """
    directory = os.path.dirname(layer.image)
    try:
        changed = has_changed(directory, fingerprint())
    except OSError as error:
        log.debug(f"the host's system cannot be noted in the profile: {error.strerror}")
        return False
    if changed:
        log.notice(
            f"the host's programs were changed since the profile {layer.name} was last started; what the profile has "
            f"changed itself stays as it is (`cloche profile diff {layer.name}`)"
        )
    return is_outdated(directory)


def machine_words(request: RunRequest) -> tuple[str, ...]:
    """Return what a machine is asked to be, one line for each property that is not the default."""
    defaults = request._field_defaults
    # The profile's own disk is the first.
    plain = request._replace(disks=request.disks[request.layer is not None :])
    return tuple(
        f"{field} {value!a}"
        for field, value in zip(plain._fields, plain, strict=True)
        if field not in _PROGRAMS_OWN and value != defaults.get(field)
    )
