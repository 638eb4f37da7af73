"""What cgroups limit: in a guest whose kernel has those of version 2, as root and as an ordinary user there.

Hosts differ in what they have of this and in what they let their users do with it; the distribution's kernel has all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from support.runs import Runner

PROGRAM = Path(__file__).with_name("limited.py")
ROLES = ("root", "ordinary")


def find_fetched(cloche: Runner) -> str | None:
    """Return the distribution's kernel, if it was fetched."""
    found = json.loads(cloche("kernel", "list", "--json").stdout)
    return next((one["id"] for one in found if one["kind"] == "fetched"), None)


@pytest.fixture(scope="module")
def seen(cloche_as_caller: Runner) -> dict[str, dict[str, Any]]:
    """Run all trials in one guest; returns what each role saw."""
    kernel = find_fetched(cloche_as_caller)
    if kernel is None:
        made = cloche_as_caller("kernel", "fetch", timeout=600)
        assert made.returncode == 0, made.stderr
        kernel = find_fetched(cloche_as_caller)
        assert kernel is not None
    project = str(cloche_as_caller.user.project)
    words = ("--privileged", "--kernel", kernel, "--memory", "768", "--share", project, "--timeout", "300")
    ended = cloche_as_caller(*words, "/usr/bin/python3", str(PROGRAM), f"{project}/src", timeout=330)
    assert ended.returncode == 0, ended.stderr.decode()
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    return dict(zip(ROLES, lines, strict=True))


@pytest.fixture(params=ROLES)
def role(request: pytest.FixtureRequest, seen: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what one role saw."""
    return seen[request.param]


def test_where_nothing_can_be_limited_nothing_is_claimed(role: dict[str, Any]) -> None:
    """Doctor says why there are no limits, and the command that it names brings them about."""
    assert role["refused"]["state"] == "note"
    assert role["refused"]["detail"].endswith("nothing limits the memory of a machine's processes")
    assert role["doctor"]["state"] == "ok"
    assert role["doctor"]["detail"].endswith(f"below {role['parent']}")


def test_a_process_that_wants_too_much_memory_is_ended_with_the_reason(role: dict[str, Any]) -> None:
    """The kernel kills it at its limit and the domain says so; with more allowed, or no cgroup, it gets it all."""
    assert role["memory"]["end"] == (
        "the domain ended: its process device was killed by the kernel: it wanted more than the 48 MiB it may have"
    )
    assert role["memory"]["said"] == []
    for mutant in ("memory, more allowed", "memory, no cgroup"):
        assert role[mutant]["said"] == ["had 96"]
        assert role[mutant]["end"].endswith("exited with status 0")


def test_a_process_that_forks_without_end_is_bounded(role: dict[str, Any]) -> None:
    """It gets as many threads as its limit says; without a cgroup as many as it wants."""
    assert role["threads"]["said"] == ["forked 4"]
    assert role["threads, no cgroup"]["said"] == ["forked 13"]


def test_the_audit_sees_limits_that_are_taken_away(role: dict[str, Any]) -> None:
    """Nothing is found as it was started; a limit raised, and a process moved elsewhere, behind the plan's back are."""
    asis, raised, moved = role["audit"]["seen"]
    assert asis == []
    assert [line.partition(") ")[2] for line in raised] == ["has no limit of its memory"]
    assert [line.partition(") ")[2] for line in moved] == ["is in another cgroup than its own"]


def test_no_cgroup_stays(role: dict[str, Any]) -> None:
    """A domain's cgroups go with it, when its supervisor is killed too; the next command takes what was left then."""
    for name, trial in role.items():
        if isinstance(trial, dict) and "left" in trial and not name.startswith("killed"):
            assert trial["left"] == [], name
    assert role["killed"] == {"left": False, "after sweep": False}
    assert role["killed with its warden"] == {"left": True, "after sweep": False}
