"""``cloche run`` with a profile (layer 6): takes it, or joins the domain that has it."""

from __future__ import annotations

from cloche.domain.profiled import take
from cloche.domain.request import build_request
from cloche.record import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.cli.parser import Parsed
    from cloche.cli.terminal import Terminal
    from cloche.host.profile_lock import Hold
    from cloche.model.request import RunRequest


def begin(parsed: Parsed, name: str, terminal: Terminal) -> tuple[RunRequest, Hold | None, int | None]:
    """Take the profile for a run.

    Returns:
        The request; what is to be released at the end; the status of the program if it ran in the domain that has the
        profile already.

    Raises:
        ProfileError: It cannot be used.
    """
    del terminal
    parsed.values["profile"] = name
    request, hold = take(build_request(parsed.values, parsed.operands))
    return request, hold, None
