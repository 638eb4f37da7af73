"""Domains that stand still and go on, and what they use meanwhile."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from support.domains import OWN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.runs import Runner


@pytest.fixture(scope="module", params=["template", "cold"])
def domain(request: pytest.FixtureRequest, cloche: Runner) -> Iterator[str]:
    """Provide a domain that counts, started in both ways: their monitors are in different states."""
    name = f"still-{request.param}{OWN}"
    options = ("--cold",) if request.param == "cold" else ()
    script = "n=0; while :; do n=$((n+1)); echo $n >/tmp/n; done"
    started = cloche("run", "-d", "--name", name, *options, "--", "sh", "-c", script)
    assert started.returncode == 0, started.stderr
    yield name
    cloche("stop", "-t", "0", name)
    cloche("rm", name)


def numbers(cloche: Runner, name: str) -> dict[str, object]:
    """Return what `stats` says."""
    (row,) = json.loads(cloche("stats", "--json", name).stdout)
    found: dict[str, object] = row
    return found


def counted(cloche: Runner, name: str) -> int:
    """Return how far the domain's program has counted; between two numbers there is none in the file."""
    while True:
        said = cloche("exec", name, "cat", "/tmp/n").stdout
        if said:
            return int(said)


def test_a_paused_domain_takes_no_cpu_and_says_what_it_cannot(cloche: Runner, domain: str) -> None:
    """It answers what needs no guest; whatever needs one is refused with the remedy; then it goes on where it was."""
    assert cloche("resume", domain).returncode == 125
    assert cloche("pause", domain).returncode == 0
    before = numbers(cloche, domain)
    assert before["guest"] is None
    (row,) = [one for one in json.loads(cloche("ps", "--json").stdout) if one["name"] == domain]
    assert row["state"] == "paused"
    for words in (
        ("exec", domain, "true"),
        ("kill", "-s", "USR1", domain),
        ("pause", domain),
        ("attach", domain),
    ):
        refused = cloche(*words)
        assert (refused.returncode, b"is paused" in refused.stderr) == (125, True), refused
        assert b"cloche resume" in refused.stderr
    after = numbers(cloche, domain)
    # The supervisor has answered a few questions; a guest that runs in a loop would have used much more.
    spent = float(str(after["cpu_s"])) - float(str(before["cpu_s"]))
    assert cloche("resume", domain).returncode == 0
    first = counted(cloche, domain)
    while counted(cloche, domain) == first:
        pass
    going = numbers(cloche, domain)
    assert going["guest"] is not None
    assert spent < float(str(going["cpu_s"]))
    assert int(str(going["processes"])) >= 4
    assert int(str(going["memory_kib"])) > 30 * 1024


def test_a_paused_domain_can_be_stopped(cloche: Runner) -> None:
    """Its programs hear of it, as those of a running one do."""
    script = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done"
    started = cloche("run", "-d", "--name", "sleeper" + OWN, "--", "sh", "-c", script)
    assert started.returncode == 0, started.stderr
    following = cloche.popen("logs", "-f", "sleeper" + OWN)
    assert following.stdout is not None
    assert following.stdout.readline() == b"up\n"
    assert cloche("pause", "sleeper" + OWN).returncode == 0
    assert cloche("stop", "sleeper" + OWN).returncode == 0
    assert following.communicate(timeout=60)[0] == b"bye\n"
    assert cloche("wait", "sleeper" + OWN).returncode == 5
    shown = json.loads(cloche("inspect", "sleeper" + OWN).stdout)
    assert (shown["state"], shown["status"]) == ("ended", 5)
    cloche("rm", "sleeper" + OWN)


def test_tables_and_plans(cloche: Runner, domain: str) -> None:
    """`top` draws as often as it is told, and `inspect` is JSON with state and plan, of whatever it holds."""
    shown = cloche("top", "-n", "2", "--interval", "0.1s").stdout.decode()
    assert shown.count("GUEST USES") == 2
    assert shown.count(domain) == 2
    plan = json.loads(cloche("inspect", domain).stdout)
    assert (plan["name"], plan["state"], plan["plan"]["driver"]) == (domain, "running", "qemu")
    assert plan["plan"]["setup"][0]["kind"] == "Clock"
    assert (plan["plan"]["template"] is None) == domain.startswith("still-cold")


def test_a_container_cannot_be_paused(cloche: Runner) -> None:
    """It is refused with the reason, and goes on."""
    started = cloche("run", "-d", "--driver", "bwrap", "--name", "box" + OWN, "--", "sleep", "3600")
    assert started.returncode == 0, started.stderr
    refused = cloche("pause", "box" + OWN)
    assert (refused.returncode, b"the bwrap driver cannot pause a domain" in refused.stderr) == (125, True)
    assert cloche("exec", "box" + OWN, "echo", "on").stdout == b"on\n"
    assert b"runs programs as" in cloche("shell", "box" + OWN).stderr
    assert cloche("stop", "box" + OWN).returncode == 0
    assert cloche("rm", "box" + OWN).returncode == 0
