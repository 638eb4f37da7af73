"""Which runs a machine of the pool can take, and what it is known by."""

from __future__ import annotations

import pytest

from cloche.model.request import Disk, Include, Network, RunRequest, Share
from cloche.plan.pool import Setting, fitting_keys, why_not

_PLAIN = RunRequest((b"true",))
_RO, _RW = Share("/a", "/a", False), Share("/b", "/b", True)


@pytest.mark.parametrize(
    "request_",
    [
        _PLAIN._replace(driver="bwrap"),
        _PLAIN._replace(cold=True),
        _PLAIN._replace(disks=(Disk("t", "/f"),)),
        _PLAIN._replace(network=Network("/s", "52:54:00:00:00:01")),
        _PLAIN._replace(hwrng=True),
        _PLAIN._replace(vsock="/run/vsock"),
        _PLAIN._replace(includes=(Include("/x", "/y"),)),
        _PLAIN._replace(devices="vmm"),
        _PLAIN._replace(insecure=("seccomp",)),
        _PLAIN._replace(accelerator="tcg"),
        _PLAIN._replace(boot_log=True),
        _PLAIN._replace(boot_timeout_s=3.0),
        _PLAIN._replace(agent_log=True),
        _PLAIN._replace(shell_on_failure=True),
    ],
)
def test_what_cannot_be_added_later_keeps_a_run_out(request_: RunRequest) -> None:
    """Each of these alone is a reason."""
    assert why_not(request_)


def test_what_comes_with_a_run_keeps_nobody_out() -> None:
    """Words, user, limits, variables, shares."""
    for fits in (
        _PLAIN,
        _PLAIN._replace(
            user="nobody", privileged=False, env=((b"A", b"b"),), workdir="/", pids=4, timeout_s=1.0
        ),
        _PLAIN._replace(privileged=True, strace=True, name="x", shares=(_RO, _RW)),
    ):
        assert why_not(fits) == ""


def test_the_key_is_what_a_machine_is_made_with() -> None:
    """Said or not, the usual memory and CPU are the same; everything else is another kind."""
    usual = Setting(1).key
    assert Setting(9, 1024, 1).key == usual
    others = {
        usual,
        Setting(1, 512).key,
        Setting(1, None, 2).key,
        Setting(1, None, None, "k").key,
        Setting(1, share_later=True).key,
    }
    assert len(others) == 5
    assert not any("," in key for key in others)


def test_who_gets_a_server_for_shares() -> None:
    """A user's run takes either; root's takes one that may write only if the run would have it by itself."""
    plain, sharing = Setting(1).key, Setting(1, share_later=True).key
    assert fitting_keys(_PLAIN, is_root=False) == (plain, sharing)
    assert fitting_keys(_PLAIN, is_root=True) == (plain,)
    assert fitting_keys(_PLAIN._replace(shares=(_RO,)), is_root=False) == (sharing,)
    assert fitting_keys(_PLAIN._replace(shares=(_RO,)), is_root=True) == ()
    assert fitting_keys(_PLAIN._replace(shares=(_RO, _RW)), is_root=True) == (sharing,)
    assert fitting_keys(_PLAIN._replace(share_later=True), is_root=True) == (sharing,)
