"""What the bwrap driver plans, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from cloche.drivers.registry import find_driver
from cloche.errors import HostError, UsageError
from cloche.model.guest import CopyTree, Mkdir
from cloche.model.request import Include
from support.plans import ROOT, TOOLS, facts, plan, process, request, share, values

SHARES = (share("/data"), share("/data/rw", writable=True), share("/src", "/home/alice/src", writable=True))
INCLUDES = (Include("/x/file", "/tmp/file"),)


@pytest.mark.parametrize(
    "options, word",
    [
        ({"memory_mib": 512}, "--memory"),
        ({"cpus": 1}, "--cpus"),
        ({"pids": 5}, "--pids"),
        ({"kernel": "x"}, "--kernel"),
        ({"accelerator": "kvm"}, "--accel"),
        ({"boot_log": True}, "--boot-log"),
        ({"privileged": True}, "--privileged"),
        ({"user": "root"}, "--user"),
        ({"user": "nobody"}, "--user"),
        ({"includes": (Include("/f", "/etc/f"),)}, "/etc/f"),
        ({"includes": (Include("/f", "/tmpx/f"),)}, "/tmpx/f"),
    ],
)
def test_what_bwrap_cannot_is_refused(options: dict[str, Any], word: str) -> None:
    """A request the container cannot keep is refused by name, never quietly dropped."""
    with pytest.raises(UsageError) as caught:
        plan(request(**options), driver="bwrap")
    assert word in caught.value.message
    assert "--driver" in str(caught.value.hint)


def test_what_bwrap_refuses_it_does_not_claim() -> None:
    """The capabilities say no to everything that is refused, and yes to nothing that qemu refuses."""
    can = find_driver("bwrap").capabilities(facts())
    assert can.isolation == "namespaces"
    assert not any(can[1:])
    qemu = find_driver("qemu").capabilities(facts())
    wishes: tuple[tuple[str, dict[str, Any]], ...] = (
        ("memory_limit", {"memory_mib": 512}),
        ("cpu_limit", {"cpus": 2}),
        ("pids_limit", {"pids": 9}),
    )
    for field, options in wishes:
        assert getattr(qemu, field)
        plan(request(**options))


def test_bwrap_may_be_told_what_is_so_anyway() -> None:
    """The caller by name or number is no other user, and root is privileged."""
    for wanted in ("alice", "1000"):
        assert plan(request(user=wanted), driver="bwrap").command.uid == 1000
    assert plan(request(privileged=True), facts(ROOT), "bwrap").command.uid == 0


def test_bwrap_says_that_it_is_weaker() -> None:
    """Every plan of the container tells the user about the host's kernel."""
    made = plan(request(), driver="bwrap")
    assert made.isolation == "namespaces"
    assert any("kernel" in line for line in made.notices)
    assert made.machine is None


def test_bwrap_is_missing() -> None:
    """Without bubblewrap the status and the plan say what to install."""
    host = facts(tools=TOOLS._replace(bwrap=""))
    assert not find_driver("bwrap").status(host).usable
    assert find_driver("bwrap").status(facts()).usable
    with pytest.raises(HostError) as caught:
        plan(request(), host, "bwrap")
    assert "bubblewrap" in str(caught.value.hint)


def test_bwrap_takes_everything_away() -> None:
    """All namespaces are new, the environment is empty, no capability is left, nothing outlives the start."""
    argv = process(plan(request(), driver="bwrap"), "container").argv
    for word in (b"--unshare-all", b"--clearenv", b"--die-with-parent", b"--new-session"):
        assert word in argv
    assert values(argv, "--cap-drop") == ["ALL"]
    assert b"--share-net" not in argv


def test_bwrap_binds_shares_as_they_are_asked_for() -> None:
    """Each share is bound at its place, read-only unless :rw was said, outer ones first, over the home."""
    argv = process(plan(request(shares=SHARES), driver="bwrap"), "container").argv
    words = [word.decode() for word in argv]
    at = words.index("--tmpfs", words.index("--perms"))
    assert words[at + 1] == "/home/alice"
    assert words[at + 2 : at + 11] == [
        *("--ro-bind", "/shares/0", "/data"),
        *("--bind", "/shares/1", "/data/rw"),
        *("--bind", "/shares/2", "/home/alice/src"),
    ]


@pytest.mark.parametrize(
    "target, fresh", [("/home/alice/src", True), ("/home/alice", False), ("/home", False), ("/homes", True)]
)
def test_bwrap_fills_only_a_fresh_home(target: str, fresh: bool) -> None:
    """The skeleton is not copied into a home that is the host's own by a share."""
    made = plan(request(shares=(share("/data", target, writable=True),)), driver="bwrap")
    assert (CopyTree(b"/etc/skel", b"/home/alice", 1000, 1000) in made.setup) is fresh


def test_bwrap_copies_into_the_home() -> None:
    """A copy below the home gets its directories, from a place the share of the run directory does not show."""
    made = plan(request(includes=(Include("/f", "/home/alice/.config/app/f"),)), driver="bwrap")
    assert made.setup[-3:] == (
        Mkdir(b"/home/alice/.config", 0o755, 1000, 1000),
        Mkdir(b"/home/alice/.config/app", 0o755, 1000, 1000),
        CopyTree(b"/run/cloche/include/0", b"/home/alice/.config/app", 1000, 1000),
    )
