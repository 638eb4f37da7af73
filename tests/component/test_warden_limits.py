"""The warden under the caller's limits."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

import pytest

from support.wardens import ROLES, domain, make_role, output

if TYPE_CHECKING:
    from support.users import OrdinaryUser


@pytest.mark.parametrize("name", ROLES)
def test_a_low_limit_of_descriptors_is_enough(name: str, ordinary: OrdinaryUser) -> None:
    """A caller who may have few open files gets processes with their descriptors all the same."""
    role = make_role(name, ordinary)

    @role.run
    def _() -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        with domain(role.warden) as warden:
            assert output(warden, "ulimit -n").split() == ["64", "status:", "0"]
