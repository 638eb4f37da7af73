"""Where sockets between a guest and the host may be."""

from __future__ import annotations

import pytest

from cloche.errors import UsageError
from cloche.model.plan import EndpointKind
from cloche.plan.sockets import check_sockets
from support.plans import plan, process, request, share


@pytest.mark.parametrize(
    "shared, writable, is_refused",
    [
        ("/run/box", True, True),
        ("/run", True, True),
        ("/", True, True),
        ("/run/box", False, False),
        ("/run/box/below", True, False),
        ("/run/bo", True, False),
        ("/run/box/door_80", True, False),
    ],
)
def test_a_guest_must_not_write_there(shared: str, writable: bool, is_refused: bool) -> None:
    """A writable share of the directory, or of one above it, is refused; others are not."""
    shares = (share("/usr"), share(shared, writable=writable))
    if is_refused:
        with pytest.raises(UsageError, match="the guest can write there"):
            check_sockets("/run/box/door", shares)
    else:
        check_sockets("/run/box/door", shares)


def test_a_plan_has_a_door_and_a_line_to_the_supervisor() -> None:
    """The process gets three sockets and nothing to see; without --vsock there is none."""
    made = plan(request(vsock="/run/box/door"))
    device = process(made, "vsock")
    kinds = {one.name: one for one in made.endpoints}
    doors = [kinds[descriptor.endpoint] for descriptor in device.descriptors]
    assert [one.kind for one in doors] == [EndpointKind.LINK, EndpointKind.DOOR, EndpointKind.PAIR]
    assert doors[1].path == "/run/box/door"
    assert (device.jail.root, device.files, device.connections) == ((), (), ())
    assert made.vsock is not None
    assert made.vsock.asks == doors[2].name
    assert plan(request()).vsock is None
